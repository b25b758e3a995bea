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

constexpr int64_t kGroup = 32;  // rows that are summed in registers: longer sums err more

// A register's sum over rows, in four parts.
template <class Acc>
struct RowSum {
  V<Acc> parts[4] = {};
  SHIFTMLP_INLINE void add(int64_t row, V<Acc> v) { parts[row % 4] += v; }
  SHIFTMLP_INLINE void into(Acc* sum) const {
    store(sum, load(sum) + ((parts[0] + parts[1]) + (parts[2] + parts[3])));
  }
};

template <class Acc>
void norm_backward(Rows dy, const Transfer<Acc>& given, Rows dx, Acc* dweight, Acc* dbias) {
  const Transfer<Acc> x = given;
  const bool layer = x.norm.mean != nullptr;
  const auto normal = [&](int64_t row, int64_t c, auto count) __attribute__((always_inline)) {
    const V<Acc> v = load_rows<Acc>(x.memory, row, c, count);
    return layer ? (v - x.norm.mean[row]) * x.norm.rstd[row] : v;
  };
  const auto weighted = [&](V<Acc> d, int64_t c, auto count) __attribute__((always_inline)) {
    return x.norm.weight == nullptr ? d : d * load<Acc>(x.norm.weight + c, count);
  };
  for (int64_t first = 0; first < x.rows; first += kGroup) {
    const int64_t end = x.rows - first < kGroup ? x.rows : first + kGroup;
    Acc by_one[kGroup] = {}, by_x[kGroup] = {};  // the two directions that LayerNorm removes
    for (int64_t row = first; layer && dx.data != nullptr && row < end; ++row) {
      V<Acc> ones[2] = {}, along[2] = {};
      int half = 0;
      for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
        const V<Acc> d = weighted(load_rows<Acc>(dy, row, c, count), c, count);
        ones[half] += d, along[half] += d * normal(row, c, count);
        half ^= 1;
      });
      by_one[row - first] = sum_of<Acc>(ones[0] + ones[1]) / x.columns;
      by_x[row - first] = sum_of<Acc>(along[0] + along[1]) / x.columns;
    }
    for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
      RowSum<Acc> to_weight, to_bias;
      for (int64_t row = first; row < end; ++row) {
        const V<Acc> d = load_rows<Acc>(dy, row, c, count), n = normal(row, c, count);
        to_weight.add(row, d * n), to_bias.add(row, d);
        if (dx.data == nullptr) continue;
        V<Acc> out = weighted(d, c, count);
        if (layer) out = x.norm.rstd[row] * (out - by_one[row - first] - n * by_x[row - first]);
        with_element<Acc>(dx.dtype, [&](auto as) __attribute__((always_inline)) {
          store<Acc>(element(dx.data, as) + row * dx.stride + c, out, count);
        });
      }
      // Beyond the row the sums are 0, and there is room for them.
      if (dweight != nullptr) to_weight.into(dweight + c);
      if (dbias != nullptr) to_bias.into(dbias + c);
    });
  }
}

template <class Acc>
constexpr Engine<Acc> kEngine = {
    kLanes<Acc>,      kStep<Acc>,         moments<Acc>,   lane_moments<Acc>, pack<Acc>,
    unpack<Acc>,      multiply<Acc>,      transpose<Acc>, activate_all<Acc>, activate_backward<Acc>,
    scale_lanes<Acc>, norm_backward<Acc>, sum_lanes<Acc>, dot_rows<Acc>,
};

}  // namespace
}  // namespace shiftmlp
