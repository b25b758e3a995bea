// What the kernels for sm_90a share: a block of two warpgroups that multiply and one that loads,
// and tiles in shared memory as TMA brings and takes them.
#pragma once

#include "items.h"
#include "wgmma.h"

namespace shiftmlp {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2 * kWarpgroup;
constexpr int kThreads = kConsumers + kWarpgroup;

template <int kValue>
using Int = std::integral_constant<int, kValue>;  // that a tile is chosen by

template <class T>
using Line = T[64];  // a row of a tile, or of a chunk of a weight

template <class T>
__device__ T* swizzled(Line<T>* lines, int row, int column) {
  return &lines[row][(column / 8 ^ row % 8) * 8 + column % 8];
}

template <class T>
__device__ void unpack(uint32_t word, float (&to)[2]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // the upper half of a float
    union {
      uint32_t words[2];
      float values[2];
    } pair{{word << 16, word & 0xffff0000}};
    to[0] = pair.values[0], to[1] = pair.values[1];
  } else {
    union {
      uint32_t word;
      T items[2];
    } pair{word};
    to[0] = float(pair.items[0]), to[1] = float(pair.items[1]);
  }
}

// Whether TMA takes 16-bit rows of so many elements: everything is a multiple of 16 bytes, no row
// begins in the one before, and no stride is too long. Of images, the same of whole images.
constexpr int64_t kLongestStride = int64_t{1} << 39;  // elements
inline bool fits_tma(const void* data, int64_t stride, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (columns | stride) % 8 == 0 &&
         1 <= columns && columns <= stride && stride < kLongestStride;
}
inline bool fits_tma(const Rows& rows, int64_t columns) {
  return fits_tma(rows.data, rows.stride, columns) && rows.stride_b % 8 == 0 &&
         rows.stride <= rows.stride_b && rows.stride_b < kLongestStride;
}

}  // namespace shiftmlp
