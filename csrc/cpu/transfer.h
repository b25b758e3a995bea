// One register on its way between a tile and memory.
#pragma once

#include "vector.h"

namespace shiftmlp {
namespace {

// A register's numbers in double, for floats in two registers. Norms and sums over rows are kept
// so: beside a product that is cheap, and their rounding would reach every number behind them.
struct Pair {
  V<double> low, high;

  SHIFTMLP_INLINE Pair(V<double> low, V<double> high) : low(low), high(high) {}
  SHIFTMLP_INLINE Pair(double x = 0) : low(V<double>{} + x), high(low) {}
  SHIFTMLP_INLINE Pair operator+(Pair b) const { return {low + b.low, high + b.high}; }
  SHIFTMLP_INLINE Pair operator-(Pair b) const { return {low - b.low, high - b.high}; }
  SHIFTMLP_INLINE Pair operator*(Pair b) const { return {low * b.low, high * b.high}; }
};

SHIFTMLP_INLINE V<double> widened(V<double> v) { return v; }
SHIFTMLP_INLINE V<double> rounded(V<double> v) { return v; }
SHIFTMLP_INLINE Floats rounded(Floats v) { return v; }

constexpr int kHalf = kWidth<double>;
using HalfOfFloats = VectorOf<float, kHalf>::type;
SHIFTMLP_INLINE V<double> widened(HalfOfFloats v) {
#ifdef SHIFTMLP_WIDEN_FLOATS
  return (V<double>)SHIFTMLP_WIDEN_FLOATS(v);  // where gcc makes seven instructions of the other
#else
  return __builtin_convertvector(v, V<double>);
#endif
}
template <int... kLane>
SHIFTMLP_INLINE Pair widened(Floats v, Indices<kLane...>) {
  return {widened(__builtin_shufflevector(v, v, kLane...)),
          widened(__builtin_shufflevector(v, v, kLane + kHalf...))};
}
SHIFTMLP_INLINE Pair widened(Floats v) { return widened(v, IndicesBelow<kHalf>::type{}); }

template <int... kLane>
SHIFTMLP_INLINE Floats rounded(Pair v, Indices<kLane...>) {
  return __builtin_shufflevector(__builtin_convertvector(v.low, HalfOfFloats),
                                 __builtin_convertvector(v.high, HalfOfFloats), kLane...);
}
SHIFTMLP_INLINE Floats rounded(Pair v) { return rounded(v, IndicesBelow<kWidth<float>>::type{}); }
template <class Acc>
using Wide = decltype(widened(V<Acc>{}));

// What the norm of a T in memory is computed in: float beside 16 bits, else double.
template <class Acc, class T>
using NormScalar = typename Choice<sizeof(T) == 2, Acc, double>::type;
template <class Acc, class T>
using NormNumber = typename Choice<sizeof(T) == 2, V<Acc>, Wide<Acc>>::type;

template <class Acc, class T>
SHIFTMLP_INLINE NormNumber<Acc, T> number(As<T>, V<Acc> v) {
  if constexpr (sizeof(T) == 2)
    return v;
  else
    return widened(v);
}

template <class Acc, class Count>
SHIFTMLP_INLINE V<Acc> load_rows(Rows x, int64_t row, int64_t column, Count count) {
  V<Acc> v;
  with_element<Acc>(x.dtype, [&](auto as) __attribute__((always_inline)) {
    v = load<Acc>(element(x.data, as) + row * x.stride + column, count);
  });
  return v;
}

SHIFTMLP_INLINE bool within(int64_t, All, int64_t) { return true; }
SHIFTMLP_INLINE bool within(int64_t row, int64_t count, int64_t rows) {
  return row < rows && count > 0;
}

// norm(v) * scale * factor of a piece of a row: `count` elements from a column on, or All. Beside
// numbers that take 16 bits in memory, a norm's rounding in float is nothing.
template <class Acc, class T, class Count>
SHIFTMLP_INLINE V<Acc> transformed(const Transfer<Acc>& t, As<T>, V<Acc> v, int64_t row,
                                   int64_t column, Count count) {
  constexpr bool kShort = sizeof(T) == 2;
  const Norm<Acc>& norm = t.norm;
  if (kShort && norm.mean != nullptr) {
    v = (v - static_cast<Acc>(norm.mean[row])) * static_cast<Acc>(norm.rstd[row]);
  }
  if (!kShort && norm.mean != nullptr) {
    Wide<Acc> n = (widened(v) - norm.mean[row]) * norm.rstd[row];
    if (norm.weight != nullptr) n = n * widened(load<Acc>(norm.weight + column, count));
    if (norm.bias != nullptr) n = n + widened(load<Acc>(norm.bias + column, count));
    v = rounded(n);
  } else {
    if (norm.weight != nullptr) v *= load<Acc>(norm.weight + column, count);
    if (norm.bias != nullptr) v += load<Acc>(norm.bias + column, count);
  }
  if (t.scale != nullptr) v *= load<Acc>(t.scale + column, count);
  if (t.factor.data != nullptr) v *= load_rows<Acc>(t.factor, row, column, count);
  return v;
}

constexpr int64_t kAhead = 8;

// Into the cache with the columns of a block.
template <class Acc>
SHIFTMLP_INLINE void fetch(Rows x, int64_t row, int64_t column) {
  with_element<Acc>(x.dtype, [&](auto as) __attribute__((always_inline)) {
    const auto* at = element(x.data, as) + row * x.stride + column;
    for (int i = 0; i < kLanes<Acc>; i += 64 / sizeof(*at)) __builtin_prefetch(at + i);
  });
}

// Calls f with a copy of which the compiler knows what it lacks: to ask for every register costs as
// much as the arithmetic.
template <class Acc, class F>
SHIFTMLP_INLINE void with_known(const Transfer<Acc>& t, const F& f) {
  const Norm<Acc>& norm = t.norm;
  const bool normed = norm.mean != nullptr || norm.weight != nullptr || norm.bias != nullptr;
  if (t.factor.data == nullptr && !normed) {
    f(Transfer<Acc>{t.memory, t.rows, t.columns, t.turned, {}, t.scale, {}, t.residual});
  } else if (t.factor.data == nullptr && t.scale == nullptr) {
    f(Transfer<Acc>{t.memory, t.rows, t.columns, t.turned, norm, nullptr, {}, t.residual});
  } else if (!normed && t.scale == nullptr) {
    f(Transfer<Acc>{t.memory, t.rows, t.columns, t.turned, {}, nullptr, t.factor, t.residual});
  } else {
    f(Transfer<Acc>{t});
  }
}

// memory = residual + norm(v) * scale * factor
template <class Acc, class T, class Count>
SHIFTMLP_INLINE void put(const Transfer<Acc>& to, As<T> as, int64_t row, int64_t column,
                         Count count, V<Acc> v) {
  if (!within(row, count, to.rows)) return;
  v = transformed(to, as, v, row, column, count);
  if (to.residual.data != nullptr) v += load_rows<Acc>(to.residual, row, column, count);
  store<Acc>(element(to.memory.data, as) + row * to.memory.stride + column, v, count);
}

}  // namespace
}  // namespace shiftmlp
