// Tensors as the engine takes them, memory to work in, and the tasks of a call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
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

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

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

constexpr int64_t kMaxLanes = 256;  // of a block in any engine, and of a tile

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

// Whether layers on their own would round all that a gradient is made of to bfloat16.
inline bool in_bfloat16(const Images& x, const Images& dy) {
  return x.dtype == DType::kBFloat16 && dy.dtype == DType::kBFloat16;
}

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

// About half of a core's second-level cache.
inline int64_t tile_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t half = sysconf(_SC_LEVEL2_CACHE_SIZE) / 2;
#else
  constexpr int64_t half = 0;  // unknown
#endif
  return std::clamp<int64_t>(half, 1 << 19, 1 << 20);
}

// How wide the tiles of a problem are that keeps `rows` numbers of each lane at hand; narrower
// where its lanes `in_all` would else not go round all threads.
template <class Acc>
struct Tiling {
  int64_t lanes, blocks;  // of a tile

  explicit Tiling(int64_t rows, int64_t in_all = std::numeric_limits<int64_t>::max(),
                  bool paired = false) {
    const int64_t unit = engine<Acc>().lanes;
    const int64_t most = std::min(engine<Acc>().tile_lanes, kMaxLanes) / unit;
    // Products that read paired tiles are fast, so that more lanes are worth more of the cache.
    const int64_t bytes = paired ? tile_bytes() / 2 * 3 : tile_bytes();
    const int64_t fitting = bytes / static_cast<int64_t>(sizeof(Acc)) / (rows + 1) / unit;
    const int64_t share = (in_all - 1) / torch::stable::get_num_threads() / unit + 1;
    blocks = std::clamp<int64_t>(std::min(fitting, share), 1, most);
    lanes = blocks * unit;
  }

  int64_t blocks_of(int64_t count) const { return ceil_div(count, engine<Acc>().lanes); }
};

// Rows of elements that a tile takes.
template <class Acc>
int64_t tile_rows(int64_t rows, bool paired) {
  const int64_t pairs = engine<Acc>().pairs;
  return paired ? ceil_div(rows, pairs) * pairs / 2 : rows;
}

// In parallel f(begin, end) over [0, count), where each costs `work` multiply-adds.
template <class F>
void parallel(int64_t count, int64_t work, const F& f) {
  constexpr int64_t kWorkPerTask = 1 << 19;  // waking a thread costs as much
  torch::stable::parallel_for(0, count, kWorkPerTask / (work + 1) + 1, f);
}

}  // namespace shiftmlp
