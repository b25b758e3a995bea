// How the passes read and write rows: a thread takes eight columns at a time, as floats, whatever
// type they have in memory. In 16-bit types that is an access of 16 bytes.
#pragma once

#include "passes.h"
#include "primitives.h"

namespace shiftmlp {

constexpr int kItems = 8;

// Eight columns of a thread among `threads` that read a row from `begin` on: neighbours; or, where
// accesses are narrow, as far apart as neighbouring threads' reads join.
template <bool kAligned>
struct Columns {
  int64_t first, end;
  int32_t step;

  __device__ Columns(int64_t begin, int64_t end, int thread, int threads)
      : first(begin + thread * (kAligned ? kItems : 1)), end(end), step(kAligned ? 1 : threads) {}

  // Aligned, all eight lie inside or none.
  __device__ bool has(int i) const { return first + (kAligned ? 0 : i * step) < end; }
};

struct Floats {
  float at[kItems];
};

__device__ inline Floats all(float value) {
  Floats v;
#pragma unroll
  for (float& item : v.at) item = value;
  return v;
}

__device__ inline Floats product(Floats a, const Floats& b) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) a.at[i] *= b.at[i];
  return a;
}
// Each operand in a fixed place of a tree.
__device__ inline float sum(const Floats& v) {
  return ((v.at[0] + v.at[1]) + (v.at[2] + v.at[3])) + ((v.at[4] + v.at[5]) + (v.at[6] + v.at[7]));
}
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Items as they stand in memory. Apart from their conversion, so that many loads are under way
// before the first of them is waited for.
union Raw {
  Bits128 words[2];
  __half halves[kItems];
  __nv_bfloat16 bfloats[kItems];
  float singles[kItems];
};

// Zeros where there are no columns or no data.
template <bool kAligned>
__device__ Raw load_raw(const void* data, DType dtype, int64_t offset,
                        const Columns<kAligned>& columns) {
  Raw raw{};
  if (data == nullptr || !columns.has(0)) return raw;
  offset += columns.first;
  if constexpr (kAligned) {
    const int bytes = dtype == DType::kFloat32 ? 4 : 2;
    const auto* words = aligned<Bits128>(static_cast<const char*>(data) + offset * bytes);
    raw.words[0] = words[0];
    if (dtype == DType::kFloat32) raw.words[1] = words[1];
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t at = offset + i * columns.step;
      if (dtype == DType::kFloat32) {
        if (columns.has(i)) raw.singles[i] = static_cast<const float*>(data)[at];
      } else {
        if (columns.has(i)) raw.halves[i] = static_cast<const __half*>(data)[at];
      }
    }
  }
  return raw;
}

__device__ inline Floats widened(const Raw& raw, DType dtype) {
  Floats v;
  const auto convert = [&v](const auto& items) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) v.at[i] = static_cast<float>(items[i]);
  };
  if (dtype == DType::kFloat16) {
    convert(raw.halves);
  } else if (dtype == DType::kBFloat16) {
    convert(raw.bfloats);
  } else {
    convert(raw.singles);
  }
  return v;
}

// The first column must lie inside.
template <bool kAligned>
__device__ void store(const Floats& v, void* data, DType dtype, int64_t offset,
                      const Columns<kAligned>& columns) {
  Raw raw{};
  const auto convert = [&](auto& items, auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    to += offset + columns.first;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      items[i] = T(v.at[i]);
      if constexpr (!kAligned) {
        if (columns.has(i)) to[int64_t{i} * columns.step] = items[i];
      }
    }
    if constexpr (kAligned) {
      auto* words = aligned<Bits128>(to);
      words[0] = raw.words[0];
      if constexpr (sizeof(T) == 4) words[1] = raw.words[1];
    }
  };
  if (dtype == DType::kFloat16) {
    convert(raw.halves, static_cast<__half*>(data));
  } else if (dtype == DType::kBFloat16) {
    convert(raw.bfloats, static_cast<__nv_bfloat16*>(data));
  } else {
    convert(raw.singles, static_cast<float*>(data));
  }
}

template <bool kAligned>
__device__ Floats load(const Vector& v, float otherwise, const Columns<kAligned>& columns) {
  if (v.data == nullptr) return all(otherwise);
  return widened(load_raw(v.data, v.dtype, 0, columns), v.dtype);
}

// Images as a kernel reads them, all rows in one sequence.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t count, stride_b, stride;

  explicit Matrix(const Images& x)
      : data(x.rows.data),
        dtype(x.dtype),
        count(x.count),
        stride_b(x.rows.stride_b),
        stride(x.rows.stride) {
    // Evenly spaced rows are those of one image, and need no division.
    if (stride_b == count * stride) count *= x.images;
  }

  template <bool kAligned>
  __device__ Raw load(int64_t row, const Columns<kAligned>& columns) const {
    if (data == nullptr) return load_raw(nullptr, dtype, 0, columns);
    const int64_t b = row < count ? 0 : row / count;
    return load_raw(data, dtype, b * stride_b + (row - b * count) * stride, columns);
  }
};

// Whether all that a pass accesses by columns can be accessed 16 bytes at a time.
class Alignment {
 public:
  explicit Alignment(int32_t columns) : items_(columns) {}

  Alignment& with(const Images& x) {
    if (x.rows.data == nullptr) return *this;
    items_ |= (x.images > 1 ? x.rows.stride_b : 0) | x.rows.stride;
    return with(x.rows.data);
  }
  Alignment& with(const Vector& v) { return with(v.data); }
  Alignment& with(const void* data) {
    bytes_ |= reinterpret_cast<uintptr_t>(data);
    return *this;
  }
  bool holds() const { return items_ % kItems == 0 && bytes_ % 16 == 0; }

 private:
  uint64_t items_, bytes_ = 0;
};

}  // namespace shiftmlp
