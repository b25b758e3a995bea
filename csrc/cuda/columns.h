// How the passes read and write rows: a thread takes eight columns at a time, as floats. A kernel
// for rows of type T accesses neighbours, in 16 bytes or twice 16. One for rows of any type, which
// is void, accesses column by column, wherever they lie.
#pragma once

#include <algorithm>

#include "divisor.h"
#include "items.h"
#include "passes.h"
#include "primitives.h"

namespace shiftmlp {

template <class T>
constexpr bool kIsWide = !std::is_void_v<T>;

// Eight columns of a thread among `threads` that read a row from `begin` on: neighbours; or, where
// accesses are narrow, as far apart as neighbouring threads' reads join.
template <bool kWide>
struct Columns {
  int64_t first;
  int32_t left, step;  // left: of the row, none if negative

  __device__ Columns(int64_t begin, int64_t end, int thread, int threads)
      : first(begin + thread * (kWide ? kItems : 1)),
        left(static_cast<int32_t>(end - first)),
        step(kWide ? 1 : threads) {}

  // So many columns further on.
  __device__ Columns after(int count) const {
    Columns others = *this;
    others.first += count, others.left -= count;
    return others;
  }

  // Wide, all eight lie inside or none.
  __device__ bool has(int i) const { return (kWide ? 0 : i * step) < left; }
};

__device__ inline Items all(float value) {
  Items v;
  for_each_item([&](int i) { v.at[i] = value; });
  return v;
}
__device__ inline Items product(Items a, const Items& b) {
  for_each_item([&](int i) { a.at[i] *= b.at[i]; });
  return a;
}
// Each operand in a fixed place of a tree.
__device__ inline float sum(const Items& v) {
  return ((v.at[0] + v.at[1]) + (v.at[2] + v.at[3])) + ((v.at[4] + v.at[5]) + (v.at[6] + v.at[7]));
}
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Calls f with the type of a dtype.
template <class F>
__device__ void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Type<__half>{});
    case DType::kBFloat16:
      return f(Type<__nv_bfloat16>{});
    default:
      return f(Type<float>{});
  }
}

// Items as they stand in memory. In words, since the compiler would move shorter ones one by one.
template <class T>
struct alignas(16) Words {
  static constexpr int kEach = 4 / sizeof(T);
  uint32_t at[kItems / kEach];
};
template <class T>
union Word {
  uint32_t word;
  T items[Words<T>::kEach];
};

template <class T>
__device__ Items unpack(const Words<T>& words) {
  constexpr int kEach = Words<T>::kEach;
  Items v;
  for_each_item([&](int i) {
    const uint32_t word = words.at[i / kEach];
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // the first half of a float
      v.at[i] = Word<float>{i % kEach ? word & 0xffff0000 : word << 16}.items[0];
    } else {
      v.at[i] = static_cast<float>(Word<T>{word}.items[i % kEach]);
    }
  });
  return v;
}
__device__ inline const Items& unpack(const Items& v) { return v; }

// Not yet converted where accesses are wide, so that many loads are under way before the first is
// waited for.
template <class T, bool kWide = kIsWide<T>>
using Loaded = std::conditional_t<kWide, Words<T>, Items>;

// Zeros where there are no columns.
template <class T, bool kWide>
__device__ Loaded<T, kWide> load(const T* row, const Columns<kWide>& columns) {
  const T* const from = row + columns.first;
  Loaded<T, kWide> to{};
  if constexpr (kWide) {
    if (columns.has(0)) to = *reinterpret_cast<const Words<T>*>(aligned<Bits128>(from));
  } else {
    for_each_item([&](int i) {
      if (columns.has(i)) to.at[i] = static_cast<float>(from[int64_t{i} * columns.step]);
    });
  }
  return to;
}
template <bool kWide>
__device__ Items load(const void* data, DType dtype, int64_t offset,
                      const Columns<kWide>& columns) {
  Items v;
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    v = unpack(load(static_cast<const T*>(data) + offset, columns));
  });
  return v;
}
template <bool kWide>
__device__ Items load(const Vector& v, float otherwise, const Columns<kWide>& columns) {
  return v.data ? load(v.data, v.dtype, 0, columns) : all(otherwise);
}
template <bool kWide>
__device__ Items scaled(const Items& v, const Vector& scale, const Columns<kWide>& columns) {
  return scale.data ? product(v, load(scale, 1.0f, columns)) : v;
}

// The first column must lie inside.
template <class T, bool kWide>
__device__ void store(const Items& v, T* row, const Columns<kWide>& columns) {
  T* const to = row + columns.first;
  if constexpr (kWide) {
    constexpr int kEach = Words<T>::kEach;
    Words<T> words;
    for_each_item<kItems / kEach>([&](int i) {
      Word<T> word;
      for_each_item<kEach>([&](int j) { word.items[j] = T(v.at[i * kEach + j]); });
      words.at[i] = word.word;
    });
    for_each_item<sizeof words / 16>(
        [&](int i) { store_global(to + i * 4 * kEach, words.at + 4 * i); });
  } else {
    for_each_item([&](int i) {
      if (columns.has(i)) to[int64_t{i} * columns.step] = T(v.at[i]);
    });
  }
}

// In T, or in any type.
template <class T>
__device__ void store(const Items& v, void* data, DType dtype, int64_t offset,
                      const Columns<kIsWide<T>>& columns) {
  if constexpr (kIsWide<T>) {
    store(v, static_cast<T*>(data) + offset, columns);
  } else {
    with_dtype(dtype, [&](auto type) {
      store(v, static_cast<typename decltype(type)::type*>(data) + offset, columns);
    });
  }
}

// Images as a kernel reads them, all rows in one sequence.
struct Matrix {
  const void* data;
  DType dtype;
  Divisor count;                  // rows of an image
  int64_t stride_b, stride, gap;  // gap: between an image's last row and the next one's first

  explicit Matrix(const Images& x)
      : data(x.rows.data),
        dtype(x.dtype),
        count(std::max(x.count, 1)),
        stride_b(x.rows.stride_b),
        stride(x.rows.stride),
        gap(stride_b - x.count * stride) {}

  // Where a row begins, by its number among all images' rows or in its image.
  __device__ int64_t offset(uint32_t row) const {
    return row * stride + static_cast<uint32_t>(count.quotient(row)) * gap;
  }
  __device__ int64_t offset(int64_t image, int64_t row) const {
    return image * stride_b + row * stride;
  }

  template <class T>
  __device__ Loaded<T> load(int64_t offset, const Columns<kIsWide<T>>& columns) const {
    if constexpr (kIsWide<T>) {
      return shiftmlp::load(static_cast<const T*>(data) + offset, columns);
    } else {
      return shiftmlp::load(data, dtype, offset, columns);
    }
  }
};

// Columns of a row from `begin` on as its warp holds them, kCount accesses of every lane, or one.
template <class T, int kCount>
struct Strip {
  static constexpr int kLoads = kIsWide<T> ? kCount : 1;
  static constexpr int kColumns = kLoads * 32 * kItems;
  Items items[kLoads];

  __device__ static Columns<kIsWide<T>> columns(int64_t begin, int64_t end, int load) {
    const Columns<kIsWide<T>> first(begin, end, threadIdx.x % 32, 32);
    return first.after(load * 32 * kItems);
  }
  __device__ Strip(const Matrix& x, int64_t offset, int64_t begin, int64_t end) {
    Loaded<T> loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) loaded[i] = x.load<T>(offset, columns(begin, end, i));
#pragma unroll
    for (int i = 0; i < kLoads; ++i) items[i] = unpack(loaded[i]);
  }
};

// Which instance of a kernel accesses all that a pass is given.
class Access {
 public:
  explicit Access(int32_t columns) : items_(columns) {}

  Access& with(const Images& x) {
    if (x.rows.data == nullptr) return *this;
    items_ |= (x.images > 1 ? x.rows.stride_b : 0) | x.rows.stride;
    dtypes_ |= bit(x.dtype);
    return with(x.rows.data);
  }
  Access& with(const void* result, DType dtype) {
    if (result) dtypes_ |= bit(dtype);
    return with(result);
  }
  Access& with(const Vector& v) { return with(v.data); }
  Access& with(const void* data) {
    bytes_ |= reinterpret_cast<uintptr_t>(data);
    return *this;
  }

  template <class Kernel>
  Kernel* choose(Kernel* any, Kernel* half, Kernel* bfloat, Kernel* single) const {
    if (items_ % kItems != 0 || bytes_ % 16 != 0) return any;
    if (dtypes_ == bit(DType::kFloat16)) return half;
    if (dtypes_ == bit(DType::kBFloat16)) return bfloat;
    return dtypes_ == bit(DType::kFloat32) ? single : any;
  }

 private:
  static uint32_t bit(DType dtype) { return 1u << static_cast<int>(dtype); }

  uint64_t items_, bytes_ = 0;
  uint32_t dtypes_ = 0;  // of rows
};

}  // namespace shiftmlp
