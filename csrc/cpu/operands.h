// Tensors as the engine takes them, memory to work in, and the tasks of a call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "../tensors.h"
#include "engine.h"

namespace shiftmlp {

template <class Acc>
constexpr auto kScalarType = std::is_same_v<Acc, double> ? torch::headeronly::ScalarType::Double
                                                         : torch::headeronly::ScalarType::Float;

template <class Acc>
constexpr DType kDType = std::is_same_v<Acc, double> ? DType::kFloat64 : DType::kFloat32;

const Engines& engines();

template <class Acc>
const Engine<Acc>& engine() {
  if constexpr (std::is_same_v<Acc, double>) {
    return engines().twofold;
  } else {
    return engines().single;
  }
}

// with_accumulator(y, [](auto zero) { using Acc = decltype(zero); ... })
template <class F>
void with_accumulator(const Tensor& y, const F& f) {
  y.scalar_type() == kScalarType<double> ? f(double{}) : f(float{});
}

// What an engine that sums in Acc can read; nothing else may reach it.
template <class Acc>
DType readable(const Tensor& x, const char* name) {
  const DType dtype = dtype_of(x, name);
  constexpr bool twofold = std::is_same_v<Acc, double>;
  STD_TORCH_CHECK((dtype == DType::kFloat64) == twofold, name,
                  ": float64 does not mix with other dtypes");
  return dtype;
}

constexpr int64_t kMaxLanes = 64;  // of a block in any engine, and of a tile

// (n,) in the accumulator's type, or nothing.
template <class Acc>
struct Vector {
  std::vector<Acc> values;

  Vector(const OptionalTensor& x, int64_t n, const std::string& name) {
    if (!x) return;
    check_shape(*x, {n}, name.c_str());
    readable<Acc>(*x, name.c_str());
    values.resize(n + kMaxLanes);  // as a whole block may be read
    with_type<torch::headeronly::Half, torch::headeronly::BFloat16>(dtype_of(*x), [&](auto type) {
      using T = typename decltype(type)::type;
      const T* from = static_cast<const T*>(x->const_data_ptr());
      const int64_t stride = x->stride(0);  // a call, which a loop would repeat
      for (int64_t i = 0; i < n; ++i) values[i] = static_cast<Acc>(from[i * stride]);
    });
  }

  const Acc* at(int64_t i) const { return values.empty() ? nullptr : values.data() + i; }
};

// (images, rows, columns) with dense columns; copied where they are not.
struct Images {
  Tensor x;
  DType dtype = DType::kFloat32;
  int64_t count = 0, rows = 0, columns = 0;
  char* data = nullptr;

  template <class Acc>
  static Images of(const Tensor& given, Acc, const char* name) {
    Images images{given};
    STD_TORCH_CHECK(given.dim() == 3, name, " must have 3 dimensions, got ", given.dim());
    images.dtype = readable<Acc>(given, name);
    images.count = given.size(0), images.rows = given.size(1), images.columns = given.size(2);
    if (images.columns > 1 && given.stride(2) != 1) images.x = torch::stable::contiguous(given);
    images.data = static_cast<char*>(const_cast<void*>(images.x.const_data_ptr()));
    return images;
  }

  // The same of what is written, of which there is no copy.
  template <class Acc>
  static Images result(const Tensor& given, Acc zero, const char* name) {
    STD_TORCH_CHECK(given.is_contiguous(), name, " must be contiguous");
    return of(given, zero, name);
  }

  // Some rows of one image, from a column on.
  Rows at(int64_t image, int64_t row, int64_t column) const {
    const int64_t offset = image * x.stride(0) + row * x.stride(1) + column;
    return {data + offset * static_cast<int64_t>(x.element_size()), dtype, x.stride(1)};
  }
};

// activation(w * x + b) on tiles.
template <class Acc>
struct Linear {
  Tensor w;
  DType dtype;
  int64_t N, K;
  Vector<Acc> bias;
  Activation activation;
  const char* name;

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
  }

  // Of what it is multiplied by.
  void check_rows(int64_t rows) const {
    STD_TORCH_CHECK(K == rows, name, " must have ", rows, " columns, got ", K);
  }

  void operator()(const Acc* x, int64_t lanes, Acc* y, Acc* scratch) const {
    apply(x, lanes, y, scratch, activation);
  }
  void apply(const Acc* x, int64_t lanes, Acc* y, Acc* scratch, Activation activation) const {
    const Operand left{w.const_data_ptr(), dtype, w.stride(0), w.stride(1), K};
    engine<Acc>().multiply({left, x, bias.at(0), y, N, K, lanes, activation, false, scratch});
  }
  // The same into memory.
  void apply(const Acc* x, int64_t lanes, const Transfer<Acc>& y, Acc* scratch) const {
    const Operand left{w.const_data_ptr(), dtype, w.stride(0), w.stride(1), K};
    engine<Acc>().multiply(
        {left, x, bias.at(0), nullptr, N, K, lanes, activation, false, scratch, &y});
  }

  // The same for some rows of w, as far as its columns k0 ... k1 go: parts with k0 > 0 add to y.
  void part(const Acc* x, int64_t lanes, Acc* y, Acc* scratch, int64_t n0, int64_t n1, int64_t k0,
            int64_t k1) const {
    const char* data = static_cast<const char*>(w.const_data_ptr());
    data += (n0 * w.stride(0) + k0 * w.stride(1)) * static_cast<int64_t>(w.element_size());
    const Operand left{data, dtype, w.stride(0), w.stride(1), k1 - k0};
    engine<Acc>().multiply({left, x, k0 ? nullptr : bias.at(n0), y, n1 - n0, k1 - k0, lanes,
                            k1 == K ? activation : Activation::kNone, k0 > 0, scratch});
  }

  // w^T, dense, for many products with it; empty if w's columns are dense already.
  std::vector<Acc> transposed() const {
    if (w.stride(0) == 1) return {};
    std::vector<Acc> turned(N * K);
    with_type<torch::headeronly::Half, torch::headeronly::BFloat16>(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const T* from = static_cast<const T*>(w.const_data_ptr());
      const int64_t stride = w.stride(0);
      constexpr int64_t kTile = 16;  // lines of both stay in the cache
      for (int64_t n0 = 0; n0 < N; n0 += kTile) {
        const int64_t end = std::min(n0 + kTile, N);
        for (int64_t k = 0; k < K; ++k) {
          for (int64_t n = n0; n < end; ++n) {
            turned[k * N + n] = static_cast<Acc>(from[n * stride + k]);
          }
        }
      }
    });
    return turned;
  }

  // w^T as a left operand, from what `transposed` made.
  Operand backward_operand(const std::vector<Acc>& turned) const {
    if (turned.empty()) return {w.const_data_ptr(), dtype, w.stride(1), w.stride(0), N};
    return {turned.data(), kDType<Acc>, N, 1, N};
  }

  // dx = w^T * dy, into a tile or memory
  void backward(const Acc* dy, int64_t lanes, Acc* dx, Acc* scratch,
                const std::vector<Acc>& turned = {}, const Transfer<Acc>* to = nullptr) const {
    engine<Acc>().multiply({backward_operand(turned), dy, nullptr, dx, K, N, lanes,
                            Activation::kNone, false, scratch, to});
  }

 private:
  static const Tensor& matrix(const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.dim() == 2, name, " must have 2 dimensions, got ", x.dim());
    return x;
  }
};

// Aligned memory of a thread, handed out piece by piece.
template <class Acc>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : size_(elements), memory_(new (std::align_val_t{64}) Acc[elements]) {}

  Acc* take(int64_t elements) {
    used_ += (elements + 15) / 16 * 16;
    STD_TORCH_CHECK(used_ <= size_, "a task needs more memory than it asked for");
    return memory_.get() + used_ - (elements + 15) / 16 * 16;
  }

  void reset() { used_ = 0; }

 private:
  struct Free {
    void operator()(Acc* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  int64_t size_, used_ = 0;
  std::unique_ptr<Acc[], Free> memory_;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How wide the tiles of a problem are that keeps `rows` numbers of each lane at hand.
template <class Acc>
struct Tiling {
  static constexpr int64_t kCacheBytes = 1 << 19;  // about half of a core's second-level cache
  static constexpr int64_t kLanes = 64;            // enough to repay the reading of the weights
  static_assert(kLanes <= kMaxLanes);

  int64_t lanes, blocks;  // of a tile

  explicit Tiling(int64_t rows) {
    const int64_t unit = engine<Acc>().lanes;
    const int64_t fitting = kCacheBytes / static_cast<int64_t>(sizeof(Acc)) / (rows + 1) / unit;
    blocks = std::max<int64_t>(1, std::min(fitting, kLanes / unit));
    lanes = blocks * unit;
  }

  int64_t blocks_of(int64_t count) const { return ceil_div(count, engine<Acc>().lanes); }
};

// In parallel f(begin, end) over [0, count), where each costs `work` multiply-adds.
template <class F>
void parallel(int64_t count, int64_t work, const F& f) {
  constexpr int64_t kWorkPerTask = 1 << 19;  // waking a thread costs as much
  torch::stable::parallel_for(0, count, kWorkPerTask / (work + 1) + 1, f);
}

}  // namespace shiftmlp
