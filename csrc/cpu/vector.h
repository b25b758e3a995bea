// One register of SHIFTMLP_BYTES, which the including unit defines: loads, stores, transposition.
// Everything here has internal linkage, see engine.h.
#pragma once

#include "engine.h"

namespace shiftmlp {
namespace {

#define SHIFTMLP_INLINE __attribute__((always_inline)) inline

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class Acc>
constexpr int kWidth = SHIFTMLP_BYTES / sizeof(Acc);
template <class Acc>
using V = typename VectorOf<Acc, kWidth<Acc>>::type;

constexpr int kRows = 6, kColumns = SHIFTMLP_COLUMNS;  // so many sums stay in registers
template <class Acc>
constexpr int kLanes = kColumns * kWidth<Acc>;

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

using Floats = V<float>;
using Words = VectorOf<uint32_t, kWidth<float>>::type;
using Integers = VectorOf<int32_t, kWidth<float>>::type;
using Shorts = VectorOf<uint16_t, kWidth<float>>::type;

template <class To, class From>
SHIFTMLP_INLINE To read(const From* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof(to));
  return to;
}

SHIFTMLP_INLINE Floats widen(Shorts x, BFloat16) {
  return (Floats)(__builtin_convertvector(x, Words) << 16);
}

SHIFTMLP_INLINE Shorts narrow(Floats x, BFloat16) {
  const Words bits = (Words)x;
  const Words rounded = (bits + (0x7fff + (bits >> 16 & 1))) >> 16;  // to nearest, ties to even
  return __builtin_convertvector(x == x ? rounded : bits >> 16 | 0x40, Shorts);
}

#ifdef SHIFTMLP_WIDEN_HALF
SHIFTMLP_INLINE Floats widen(Shorts x, Half) { return (Floats)SHIFTMLP_WIDEN_HALF(x); }
SHIFTMLP_INLINE Shorts narrow(Floats x, Half) { return (Shorts)SHIFTMLP_NARROW_HALF(x); }
#else
SHIFTMLP_INLINE Floats widen(Shorts x, Half) {
  const Words h = __builtin_convertvector(x, Words), magnitude = h & 0x7fff;
  const Floats normal = (Floats)(magnitude << 13) * 0x1p112f;  // moves the exponent's bias
  const Words special = magnitude << 13 | 0x7f800000;          // Inf and NaN
  const Words wide = magnitude >= 0x7c00 ? special : (Words)normal;
  return (Floats)(wide | (h & 0x8000) << 16);
}

SHIFTMLP_INLINE Shorts narrow(Floats x, Half) {
  const Words bits = (Words)x, sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  // To nearest, ties to even: of 13 bits by a carry, of a subnormal by the sum with 0.5.
  const Words normal = (magnitude - (112u << 23) + (0xfff + (magnitude >> 13 & 1))) >> 13;
  const Words subnormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000;
  Words h = magnitude < (113u << 23) ? subnormal : normal;
  h = magnitude >= (143u << 23) ? Words{} + 0x7c00 : h;
  h = magnitude > (255u << 23) ? (magnitude >> 13 & 0x3ff) | 0x7e00 : h;
  return __builtin_convertvector(h | sign, Shorts);
}
#endif

SHIFTMLP_INLINE Floats load(const float* x) { return read<Floats>(x); }
SHIFTMLP_INLINE V<double> load(const double* x) { return read<V<double>>(x); }
SHIFTMLP_INLINE Floats load(const BFloat16* x) { return widen(read<Shorts>(x), BFloat16{}); }
SHIFTMLP_INLINE Floats load(const Half* x) { return widen(read<Shorts>(x), Half{}); }

SHIFTMLP_INLINE void store(float* y, Floats v) { __builtin_memcpy(y, &v, sizeof(v)); }
SHIFTMLP_INLINE void store(double* y, V<double> v) { __builtin_memcpy(y, &v, sizeof(v)); }
template <class T>
SHIFTMLP_INLINE void store(T* y, Floats v) {
  const Shorts bits = narrow(v, T{});
  __builtin_memcpy(y, &bits, sizeof(bits));
}

// The count of a whole register.
struct All {};

template <class Acc, class T>
SHIFTMLP_INLINE V<Acc> load(const T* x, All) {
  return load(x);
}
template <class Acc, class T>
SHIFTMLP_INLINE void store(T* y, V<Acc> v, All) {
  store(y, v);
}

// The first `count` elements, zero beyond them, which is not read.
template <class Acc, class T>
SHIFTMLP_INLINE V<Acc> load(const T* x, int64_t count) {
  if (count >= kWidth<Acc>) return load(x);
  T part[kWidth<Acc>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = x[i];
  return load(part);
}

template <class Acc, class T>
SHIFTMLP_INLINE void store(T* y, V<Acc> v, int64_t count) {
  if (count >= kWidth<Acc>) return store(y, v);
  T part[kWidth<Acc>];
  store(part, v);
  for (int64_t i = 0; i < count; ++i) y[i] = part[i];
}

SHIFTMLP_INLINE Floats absolute(Floats x) { return (Floats)((Words)x & 0x7fffffff); }
SHIFTMLP_INLINE V<double> absolute(V<double> x) { return x < 0 ? -x : x; }

// min(x, limit); NaN stays.
SHIFTMLP_INLINE Floats at_most(Floats x, float limit) {
#ifdef SHIFTMLP_MIN
  return (Floats)SHIFTMLP_MIN(Floats{} + limit, x);
#else
  return x > limit ? Floats{} + limit : x;
#endif
}
SHIFTMLP_INLINE V<double> at_most(V<double> x, double limit) {
  return x > limit ? V<double>{} + limit : x;
}

template <bool kFirst, class First, class Second>
struct Choice {
  typedef First type;
};
template <class First, class Second>
struct Choice<false, First, Second> {
  typedef Second type;
};

template <int... kValues>
struct Indices {};
template <int N, int... kValues>
struct IndicesBelow : IndicesBelow<N - 1, N - 1, kValues...> {};
template <int... kValues>
struct IndicesBelow<0, kValues...> {
  using type = Indices<kValues...>;
};

// Exchanges the bit `kBit` of the row with that of the lane.
template <int kBit, class Acc, int... kLane>
SHIFTMLP_INLINE void exchange(V<Acc>* v, Indices<kLane...>) {
  constexpr int N = sizeof...(kLane);
  for (int i = 0; i < N; ++i) {
    if (i & kBit) continue;
    const V<Acc> a = v[i], b = v[i | kBit];
    v[i] = __builtin_shufflevector(a, b, (kLane & kBit ? (kLane ^ kBit) + N : kLane)...);
    v[i | kBit] = __builtin_shufflevector(a, b, (kLane & kBit ? kLane + N : kLane | kBit)...);
  }
}

// A square of kWidth rows, in registers.
template <class Acc, int kBit = 1>
SHIFTMLP_INLINE void transpose_square(V<Acc>* v) {
  if constexpr (kBit < kWidth<Acc>) {
    exchange<kBit, Acc>(v, typename IndicesBelow<kWidth<Acc>>::type{});
    transpose_square<Acc, kBit * 2>(v);
  }
}

template <class T>
struct As {};

template <class T>
SHIFTMLP_INLINE T* element(void* data, As<T>) {
  return static_cast<T*>(data);
}
template <class T>
SHIFTMLP_INLINE const T* element(const void* data, As<T>) {
  return static_cast<const T*>(data);
}

// Calls f(As<T>{}) with the type in memory. An engine reads and writes what its Acc can hold.
template <class Acc, class F>
SHIFTMLP_INLINE void with_element(DType dtype, const F& f) {
  if constexpr (sizeof(Acc) == 8) {
    f(As<double>{});
  } else if (dtype == DType::kFloat32) {
    f(As<float>{});
  } else if (dtype == DType::kBFloat16) {
    f(As<BFloat16>{});
  } else {
    f(As<Half>{});
  }
}

}  // namespace
}  // namespace shiftmlp
