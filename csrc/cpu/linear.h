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

// (N, K) with dense rows of `dtype`, filled up with zeros. Dense rows are copied as they are.
template <class Acc>
Matrix copied(const Operand& from, DType dtype, int64_t N, int64_t K, int64_t zeros) {
  constexpr std::align_val_t kLine{64};
  const Engine<Acc>& run = engine<Acc>();
  const int64_t pitch = K + zeros, size = size_of(dtype), lanes = run.lanes;
  char* const to = static_cast<char*>(::operator new(N * pitch * size + 64, kLine));
  std::shared_ptr<void> copy(to, [](void* memory) { ::operator delete(memory, kLine); });
  char* const data = static_cast<char*>(const_cast<void*>(from.data));
  const bool dense = from.column == 1;
  for (int64_t n = 0; n < N; ++n) {
    if (dense) std::memcpy(to + n * pitch * size, data + n * from.row * size, K * size);
    std::memset(to + (n * pitch + K) * size, 0, zeros * size);
  }
  Scratch<Acc> scratch(N * lanes + 16);
  Acc* const tile = scratch.take(N * lanes);
  for (int64_t k = dense ? K : 0; k < K; k += lanes) {
    const int64_t count = std::min(lanes, K - k);
    const Rows rows{data + k * from.column * size_of(from.dtype), from.dtype, from.column};
    run.pack({rows, count, N, true, {}, nullptr, {}, {}}, tile);
    run.unpack(tile, {{to + k * size, dtype, pitch}, N, count, false, {}, nullptr, {}, {}});
  }
  return {{to, dtype, pitch, 1, K, zeros}, std::move(copy)};
}

// A matrix in place, unless the engine reads a copy faster.
template <class Acc>
Matrix matrix_of(const Operand& from, int64_t N, int64_t K) {
  const int64_t terms = engine<Acc>().terms;
  if (from.dtype != DType::kBFloat16 || terms == 1) return {from, nullptr};
  const int64_t alignment = reinterpret_cast<uintptr_t>(from.data) | from.row * size_of(from.dtype);
  if (from.column == 1 && K % terms == 0 && alignment % 64 == 0) return {from, nullptr};
  int64_t zeros = -K & (terms - 1);
  if ((K + zeros) / terms % 2 == 0) zeros += terms;  // as rows a power of two apart crowd the cache
  return copied<Acc>(from, from.dtype, N, K, zeros);
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

  // Whether a product rounds x, so that its tile may be paired.
  bool pairs() const { return engine<Acc>().pairs != 0 && dtype == DType::kBFloat16; }

  // It, but for where the result goes.
  Product<Acc> product(const Acc* x, int64_t lanes, Acc* scratch, Pairing pairing = {}) const {
    return {left.operand, x,     bias.at(0), nullptr, N,     K,      lanes,
            activation,   false, scratch,    nullptr, false, pairing};
  }
  void operator()(const Acc* x, int64_t lanes, Acc* y, Acc* scratch, Pairing pairing = {}) const {
    Product<Acc> all = product(x, lanes, scratch, pairing);
    all.out = y;
    engine<Acc>().multiply(all);
  }
  // The same into memory.
  void apply(const Acc* x, int64_t lanes, const Transfer<Acc>& y, Acc* scratch,
             Pairing pairing = {}) const {
    Product<Acc> all = product(x, lanes, scratch, pairing);
    all.to = &y;
    engine<Acc>().multiply(all);
  }

  // The same for some rows of w, as far as its columns k0 ... k1 go: parts with k0 > 0 add to y.
  void part(const Acc* x, int64_t lanes, Acc* y, Acc* scratch, int64_t n0, int64_t n1, int64_t k0,
            int64_t k1, Pairing pairing) const {
    Operand some = left.operand;
    const char* data = static_cast<const char*>(some.data);
    some.data = data + (n0 * some.row + k0 * some.column) * w.element_size();
    some.block = k1 - k0, some.zeros = k1 == K ? some.zeros : 0;
    engine<Acc>().multiply({some, x, k0 ? nullptr : bias.at(n0), y, n1 - n0, k1 - k0, lanes,
                            k1 == K ? activation : Activation::kNone, k0 > 0, scratch, nullptr,
                            false, pairing});
  }

  // w^T, for so many products with it that a copy with dense rows is repaid, or as it stands.
  Matrix turned(bool copy = true) const {
    const Operand as_it_stands{w.const_data_ptr(), dtype, w.stride(1), w.stride(0), N};
    if (!copy) return {as_it_stands, nullptr};
    Matrix found = matrix_of<Acc>(as_it_stands, K, N);
    if (found.operand.column == 1) return found;
    return copied<Acc>(as_it_stands, kDType<Acc>, K, N, 0);
  }

  // w^T * dy, but for where the result goes.
  Product<Acc> backward(const Acc* dy, int64_t lanes, Acc* scratch, const Matrix& turned,
                        Pairing pairing) const {
    return {turned.operand,    dy,    nullptr, nullptr, K,     N,      lanes,
            Activation::kNone, false, scratch, nullptr, false, pairing};
  }

 private:
  static const Tensor& matrix(const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.dim() == 2, name, " must have 2 dimensions, got ", x.dim());
    return x;
  }
};

}  // namespace shiftmlp
