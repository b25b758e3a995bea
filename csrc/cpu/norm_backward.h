// The adjoint of the norms, row by row, and the engine that all passes make up.
#pragma once

#include "passes.h"

namespace shiftmlp {
namespace {

// Calls f(column, count) for a row's pieces.
template <class Acc, class F>
SHIFTMLP_INLINE void for_each_column(int64_t columns, const F& f) {
  int64_t c = 0;
  for (; c + kWidth<Acc> <= columns; c += kWidth<Acc>) f(c, All{});
  if (c < columns) f(c, columns - c);
}

template <class Acc, class T>
SHIFTMLP_INLINE void norm_backward_as(As<T> as, Rows dy, const Transfer<Acc>& given, Rows dx,
                                      Acc* dweight, Acc* dbias) {
  constexpr int64_t kGroup = 32;  // rows whose sums stay in registers
  using Number = NormNumber<Acc, T>;
  using Scalar = NormScalar<Acc, T>;
  const Transfer<Acc> x = given;
  const bool layer = x.norm.mean != nullptr;
  const auto normal = [&](int64_t row, int64_t c, auto count) __attribute__((always_inline)) {
    const Number v =
        number<Acc>(as, load<Acc>(element(x.memory.data, as) + row * x.memory.stride + c, count));
    if (!layer) return v;
    return (v - static_cast<Scalar>(x.norm.mean[row])) * static_cast<Scalar>(x.norm.rstd[row]);
  };
  const auto gradient = [&](int64_t row, int64_t c, auto count) __attribute__((always_inline)) {
    return number<Acc>(as, load_rows<Acc>(dy, row, c, count));
  };
  const auto weighted = [&](Number d, int64_t c, auto count) __attribute__((always_inline)) {
    if (x.norm.weight == nullptr) return d;
    return d * number<Acc>(as, load<Acc>(x.norm.weight + c, count));
  };
  for (int64_t first = 0; first < x.rows; first += kGroup) {
    const int64_t end = x.rows - first < kGroup ? x.rows : first + kGroup;
    Scalar by_one[kGroup] = {}, by_x[kGroup] = {};  // the two directions that LayerNorm removes
    for (int64_t row = first; layer && dx.data != nullptr && row < end; ++row) {
      Number ones{}, along{};
      for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
        const Number d = weighted(gradient(row, c, count), c, count);
        ones = ones + d, along = along + d * normal(row, c, count);
      });
      by_one[row - first] = total(ones) / x.columns;
      by_x[row - first] = total(along) / x.columns;
    }
    for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
      Number to_weight{}, to_bias{};
      for (int64_t row = first; row < end; ++row) {
        const Number d = gradient(row, c, count), n = normal(row, c, count);
        to_weight = to_weight + d * n, to_bias = to_bias + d;
        if (dx.data == nullptr) continue;
        Number out = weighted(d, c, count);
        if (layer) {
          const auto rstd = static_cast<Scalar>(x.norm.rstd[row]);
          out = (out - by_one[row - first] - n * by_x[row - first]) * rstd;
        }
        with_element<Acc>(dx.dtype, [&](auto as) __attribute__((always_inline)) {
          store<Acc>(element(dx.data, as) + row * dx.stride + c, rounded(out), count);
        });
      }
      // Beyond the row the sums are 0, and there is room for them.
      if (dweight != nullptr) store(dweight + c, load(dweight + c) + rounded(to_weight));
      if (dbias != nullptr) store(dbias + c, load(dbias + c) + rounded(to_bias));
    });
  }
}

template <class Acc>
void norm_backward(Rows dy, const Transfer<Acc>& x, Rows dx, Acc* dweight, Acc* dbias) {
  with_element<Acc>(x.memory.dtype, [&](auto as) __attribute__((always_inline)) {
    norm_backward_as(as, dy, x, dx, dweight, dbias);
  });
}

template <class Acc>
constexpr Engine<Acc> kEngine = {
    kLanes<Acc>,
    kLanes<Acc> < 64 ? 64 : 128,  // tile_lanes
    1,                            // terms
    0,                            // pairs
    false,                        // rounds
    gather_scratch<Acc>,
    moments<Acc>,
    lane_moments<Acc>,
    pack<Acc>,
    unpack<Acc>,
    multiply<Acc>,
    gather_lanes<Acc>,
    activate_backward<Acc>,
    scale_lanes<Acc>,
    norm_backward<Acc>,
    sum_lanes<Acc>,
    dot_rows<Acc>,
};

}  // namespace
}  // namespace shiftmlp
