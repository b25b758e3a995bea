// The layers of an op: a weight as a product's left operand, its bias and activation.
#pragma once

#include <cstring>

#include "operands.h"

namespace shiftmlp {

// A left operand for many products, and the copy that it may stand in.
struct Matrix {
  Operand operand;
  std::shared_ptr<void> copy;
};

// (N, K) with dense rows of T, filled up with zeros; (n, k) is read at n * row + k * column.
template <class T, class From>
Matrix copied(const From* from, DType dtype, int64_t N, int64_t K, int64_t row, int64_t column,
              int64_t zeros) {
  constexpr std::align_val_t kLine{64};
  constexpr int64_t kTile = 16;  // lines of both stay in the cache
  const int64_t pitch = K + zeros;
  T* const to = static_cast<T*>(::operator new(N * pitch * sizeof(T) + 64, kLine));
  std::shared_ptr<void> copy(to, [](void* memory) { ::operator delete(memory, kLine); });
  const bool by_rows = std::is_same_v<T, From> && column == 1;
  for (int64_t n = 0; n < N; ++n) {
    if (by_rows) std::memcpy(to + n * pitch, from + n * row, K * sizeof(T));
    std::memset(to + n * pitch + K, 0, zeros * sizeof(T));
  }
  for (int64_t k0 = by_rows ? K : 0; k0 < K; k0 += kTile) {
    const int64_t end = std::min(k0 + kTile, K);
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = k0; k < end; ++k) {
        to[n * pitch + k] = static_cast<T>(from[n * row + k * column]);
      }
    }
  }
  return {{to, dtype, pitch, 1, K, zeros}, std::move(copy)};
}

// A matrix in place, unless the engine reads a copy faster.
template <class Acc>
Matrix matrix_of(const Operand& from, int64_t N, int64_t K) {
  using torch::headeronly::BFloat16;
  const int64_t terms = engine<Acc>().terms;
  if (from.dtype != DType::kBFloat16 || terms == 1) return {from, nullptr};
  const int64_t alignment =
      reinterpret_cast<uintptr_t>(from.data) | from.row * static_cast<int64_t>(sizeof(BFloat16));
  if (from.column == 1 && K % terms == 0 && alignment % 64 == 0) return {from, nullptr};
  int64_t zeros = -K & (terms - 1);
  if ((K + zeros) / terms % 2 == 0) zeros += terms;  // as rows a power of two apart crowd the cache
  return copied<BFloat16>(static_cast<const BFloat16*>(from.data), from.dtype, N, K, from.row,
                          from.column, zeros);
}

// activation(w * x + b) on tiles.
template <class Acc>
struct Linear {
  Tensor w;
  DType dtype;
  int64_t N, K;
  Vector<Acc> bias;
  Activation activation;
  const char* name;
  Matrix left;

  Linear(const Tensor& weight, const OptionalTensor& b, Activation activation = Activation::kNone,
         const char* name = "weight")
      : w(matrix(weight, name)),
        dtype(readable<Acc>(w, name)),
        N(w.size(0)),
        K(w.size(1)),
        bias(b, N, std::string("the bias of ") + name),
        activation(activation),
        name(name) {
    if (w.stride(0) != 1 && w.stride(1) != 1) w = torch::stable::contiguous(w);
    left = matrix_of<Acc>({w.const_data_ptr(), dtype, w.stride(0), w.stride(1), K}, N, K);
  }

  // Of what it is multiplied by.
  void check_rows(int64_t rows) const {
    STD_TORCH_CHECK(K == rows, name, " must have ", rows, " columns, got ", K);
  }

  void operator()(const Acc* x, int64_t lanes, Acc* y, Acc* scratch) const {
    apply(x, lanes, y, scratch, activation);
  }
  void apply(const Acc* x, int64_t lanes, Acc* y, Acc* scratch, Activation activation) const {
    engine<Acc>().multiply(
        {left.operand, x, bias.at(0), y, N, K, lanes, activation, false, scratch});
  }
  // The same into memory.
  void apply(const Acc* x, int64_t lanes, const Transfer<Acc>& y, Acc* scratch) const {
    engine<Acc>().multiply(
        {left.operand, x, bias.at(0), nullptr, N, K, lanes, activation, false, scratch, &y});
  }

  // The same for some rows of w, as far as its columns k0 ... k1 go: parts with k0 > 0 add to y.
  void part(const Acc* x, int64_t lanes, Acc* y, Acc* scratch, int64_t n0, int64_t n1, int64_t k0,
            int64_t k1) const {
    Operand some = left.operand;
    const char* data = static_cast<const char*>(some.data);
    some.data = data + (n0 * some.row + k0 * some.column) * w.element_size();
    some.block = k1 - k0, some.zeros = k1 == K ? some.zeros : 0;
    engine<Acc>().multiply({some, x, k0 ? nullptr : bias.at(n0), y, n1 - n0, k1 - k0, lanes,
                            k1 == K ? activation : Activation::kNone, k0 > 0, scratch});
  }

  // w^T, for so many products with it that a copy with dense rows is repaid, or as it stands.
  Matrix turned(bool copy = true) const {
    const Operand as_it_stands{w.const_data_ptr(), dtype, w.stride(1), w.stride(0), N};
    Matrix found{as_it_stands, nullptr};
    if (copy) found = matrix_of<Acc>(as_it_stands, K, N);
    if (!copy || found.operand.column == 1) return found;
    with_type<torch::headeronly::Half, torch::headeronly::BFloat16>(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      found = copied<Acc>(static_cast<const T*>(w.const_data_ptr()), kDType<Acc>, K, N, w.stride(1),
                          w.stride(0), 0);
    });
    return found;
  }

  // dx = w^T * dy, into a tile or memory
  void backward(const Acc* dy, int64_t lanes, Acc* dx, Acc* scratch, const Matrix& turned,
                const Transfer<Acc>* to = nullptr) const {
    engine<Acc>().multiply(
        {turned.operand, dy, nullptr, dx, K, N, lanes, Activation::kNone, false, scratch, to});
  }

 private:
  static const Tensor& matrix(const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.dim() == 2, name, " must have 2 dimensions, got ", x.dim());
    return x;
  }
};

}  // namespace shiftmlp
