// Neighbouring elements of a row in float32: N of them, or as many as 16 bytes of a 16-bit type
// are. They are accessed 16 bytes at a time where their address and the row's end allow it.
#pragma once

#include "../dispatch.h"
#include "device.h"
#include "product.h"

namespace shiftmlp {

constexpr int kItems = 8;

template <int N>
struct ItemsOf {
  float at[N];
};
using Items = ItemsOf<kItems>;

template <int N = kItems, class F>
__device__ void for_each_item(const F& f) {
#pragma unroll
  for (int i = 0; i < N; ++i) f(i);
}

template <class T, int N = kItems>
struct alignas(16) Packed {
  T items[N];
};

template <int N, class T>
__device__ bool whole(const T* at, int count) {
  return count >= N && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

// The first `count` items, and zeros.
template <class T, int N = kItems>
__device__ Packed<T, N> pack(const T* from, int count) {
  if (whole<N>(from, count)) return *reinterpret_cast<const Packed<T, N>*>(from);
  Packed<T, N> packed;
  for_each_item<N>([&](int i) { packed.items[i] = i < count ? from[i] : T(0.0f); });
  return packed;
}
template <class T, int N>
__device__ ItemsOf<N> unpack(const Packed<T, N>& packed) {
  ItemsOf<N> to;
  for_each_item<N>([&](int i) { to.at[i] = float(packed.items[i]); });
  return to;
}
template <int N = kItems, class T>
__device__ ItemsOf<N> read(const T* from, int count) {
  return unpack(pack<T, N>(from, count));
}

template <class T, int N>
__device__ void write(T* to, const ItemsOf<N>& from, int count) {
  Packed<T, N> packed;
  for_each_item<N>([&](int i) { packed.items[i] = T(from.at[i]); });
  if (whole<N>(to, count)) {
    *reinterpret_cast<Packed<T, N>*>(to) = packed;
  } else {
    for_each_item<N>([&](int i) {
      if (i < count) to[i] = packed.items[i];
    });
  }
}

// Of T elements: column c on, of row r of image b.
template <class T, int N = kItems>
__device__ Packed<T, N> pack(const Rows& rows, int64_t b, int64_t r, int64_t c, int count) {
  const T* const data = static_cast<const T*>(rows.data);
  return pack<T, N>(data + b * rows.stride_b + r * rows.stride + c, count);
}
template <class T>
__device__ Items read(const Rows& rows, int64_t b, int64_t r, int64_t c, int count) {
  return read(static_cast<const T*>(rows.data) + b * rows.stride_b + r * rows.stride + c, count);
}

// The numbers from `at` on; where there is no vector, `otherwise`.
template <int N = kItems>
__device__ ItemsOf<N> read(const Vector& v, int64_t at, int count, float otherwise) {
  if (v.data == nullptr) {
    ItemsOf<N> to;
    for_each_item<N>([&](int i) { to.at[i] = otherwise; });
    return to;
  }
  switch (v.dtype) {
    case DType::kFloat16:
      return read<N>(static_cast<const __half*>(v.data) + at, count);
    case DType::kBFloat16:
      return read<N>(static_cast<const __nv_bfloat16*>(v.data) + at, count);
    default:
      return read<N>(static_cast<const float*>(v.data) + at, count);
  }
}

// One number; where there is no vector, `otherwise`.
__device__ inline float read(const Vector& v, int64_t at, float otherwise = 0.0f) {
  if (v.data == nullptr) return otherwise;
  switch (v.dtype) {
    case DType::kFloat16:
      return float(static_cast<const __half*>(v.data)[at]);
    case DType::kBFloat16:
      return float(static_cast<const __nv_bfloat16*>(v.data)[at]);
    default:
      return static_cast<const float*>(v.data)[at];
  }
}

}  // namespace shiftmlp
