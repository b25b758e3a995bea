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
  const Transfer<Acc> x = given;
  const bool layer = x.norm.mean != nullptr;
  for (int64_t row = 0; row < x.rows; ++row) {
    const Acc mean = layer ? x.norm.mean[row] : 0, rstd = layer ? x.norm.rstd[row] : 1;
    const auto normal = [&](int64_t c, auto count) __attribute__((always_inline)) {
      return (load_rows<Acc>(x.memory, row, c, count) - mean) * rstd;
    };
    const auto weighted = [&](int64_t c, auto count) __attribute__((always_inline)) {
      const V<Acc> d = load_rows<Acc>(dy, row, c, count);
      return x.norm.weight == nullptr ? d : d * load<Acc>(x.norm.weight + c, count);
    };
    V<Acc> ones{}, along{};  // the two directions that LayerNorm removes: 1 and x
    for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
      const V<Acc> d = load_rows<Acc>(dy, row, c, count);
      // Beyond the row d is 0, and there is room for it.
      if (dweight != nullptr) store(dweight + c, load(dweight + c) + d * normal(c, count));
      if (dbias != nullptr) store(dbias + c, load(dbias + c) + d);
      ones += weighted(c, count), along += weighted(c, count) * normal(c, count);
    });
    if (dx.data == nullptr) continue;
    const Acc scale = layer ? Acc{1} / x.columns : 0;
    const Acc by_one = sum_of<Acc>(ones) * scale, by_x = sum_of<Acc>(along) * scale;
    with_element<Acc>(dx.dtype, [&](auto as) __attribute__((always_inline)) {
      auto* out = element(dx.data, as) + row * dx.stride;
      for_each_column<Acc>(x.columns, [&](int64_t c, auto count) __attribute__((always_inline)) {
        const V<Acc> rest = layer ? by_one + normal(c, count) * by_x : V<Acc>{};
        store<Acc>(out + c, rstd * (weighted(c, count) - rest), count);
      });
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
