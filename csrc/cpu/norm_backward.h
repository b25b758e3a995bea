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

template <class Acc>
void norm_backward(Rows dy, const Transfer<Acc>& given, Rows dx, Acc* dweight, Acc* dbias) {
  constexpr int64_t kGroup = 32;  // rows whose sums stay in registers
  const Transfer<Acc> x = given;
  const bool layer = x.norm.mean != nullptr;
  const auto normal = [&](int64_t row, int64_t c, auto count) __attribute__((always_inline)) {
    const Wide<Acc> v = widened(load_rows<Acc>(x.memory, row, c, count));
    return layer ? (v - x.norm.mean[row]) * x.norm.rstd[row] : v;
  };
  const auto weighted = [&](Wide<Acc> d, int64_t c, auto count) __attribute__((always_inline)) {
    return x.norm.weight == nullptr ? d : d * widened(load<Acc>(x.norm.weight + c, count));
  };
  for (int64_t first = 0; first < x.rows; first += kGroup) {
    const int64_t end = x.rows - first < kGroup ? x.rows : first + kGroup;
    double by_one[kGroup] = {}, by_x[kGroup] = {};  // the two directions that LayerNorm removes
    for (int64_t row = first; layer && dx.data != nullptr && row < end; ++row) {
      Wide<Acc> ones{}, along{};
      for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
        const Wide<Acc> d = weighted(widened(load_rows<Acc>(dy, row, c, count)), c, count);
        ones = ones + d, along = along + d * normal(row, c, count);
      });
      by_one[row - first] = total(ones) / x.columns;
      by_x[row - first] = total(along) / x.columns;
    }
    for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
      Wide<Acc> to_weight{}, to_bias{};
      for (int64_t row = first; row < end; ++row) {
        const Wide<Acc> d = widened(load_rows<Acc>(dy, row, c, count));
        const Wide<Acc> n = normal(row, c, count);
        to_weight = to_weight + d * n, to_bias = to_bias + d;
        if (dx.data == nullptr) continue;
        Wide<Acc> out = weighted(d, c, count);
        if (layer) out = (out - by_one[row - first] - n * by_x[row - first]) * x.norm.rstd[row];
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
constexpr Engine<Acc> kEngine = {
    kLanes<Acc>,
    1,  // terms
    gather_scratch<Acc>,
    moments<Acc>,
    lane_moments<Acc>,
    pack<Acc>,
    unpack<Acc>,
    multiply<Acc>,
    gather_lanes<Acc>,
    transpose<Acc>,
    activate_all<Acc>,
    activate_backward<Acc>,
    scale_lanes<Acc>,
    norm_backward<Acc>,
    sum_lanes<Acc>,
    dot_rows<Acc>,
};

}  // namespace
}  // namespace shiftmlp
