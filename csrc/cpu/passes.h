// What happens to numbers before and after a product.
#pragma once

#include "gemm.h"

namespace shiftmlp {
namespace {

SHIFTMLP_INLINE double total(V<double> v) {
  double sum = 0;
  for (int i = 0; i < kWidth<double>; ++i) sum += v[i];
  return sum;
}
SHIFTMLP_INLINE double total(Pair v) { return total(v.low + v.high); }
SHIFTMLP_INLINE double total(Floats v) { return total(widened(v)); }

// The sum of x, or with kSquared of (x - mean)^2, over a row; in float where 16 bits hold its
// numbers.
template <class Acc, bool kSquared, class T>
SHIFTMLP_INLINE double sum_row(const T* x, int64_t columns, double mean) {
  constexpr int W = kWidth<Acc>;
  using Scalar = NormScalar<Acc, T>;
  const auto term = [center = static_cast<Scalar>(mean)](auto v) __attribute__((always_inline)) {
    if constexpr (kSquared) return (v - center) * (v - center);
    return v;
  };
  const auto terms = [&](int64_t c) __attribute__((always_inline)) {
    return term(number<Acc>(As<T>{}, load(x + c)));
  };
  // Two, as a sum waits for the one before.
  NormNumber<Acc, T> sum[2] = {};
  int64_t c = 0;
  for (; c + 2 * W <= columns; c += 2 * W) {
    sum[0] = sum[0] + terms(c), sum[1] = sum[1] + terms(c + W);
  }
  if (c + W <= columns) sum[0] = sum[0] + terms(c), c += W;
  double all = total(sum[0] + sum[1]);
  if (c == columns) return all;
  const V<Acc> last = load<Acc>(x + c, columns - c);
  for (int64_t i = 0; i < columns - c; ++i) all += term(static_cast<Scalar>(last[i]));
  return all;
}

SHIFTMLP_INLINE double inverse_root(double x) { return 1 / __builtin_sqrt(x); }

template <class Acc>
void moments(Rows x, int64_t rows, int64_t columns, double eps, double* mean, double* rstd) {
  with_element<Acc>(x.dtype, [&](auto as) __attribute__((always_inline)) {
    const auto* row = element(x.data, as);
    for (int64_t r = 0; r < rows; ++r, row += x.stride) {
      mean[r] = sum_row<Acc, false>(row, columns, 0) / columns;
      rstd[r] = inverse_root(sum_row<Acc, true>(row, columns, mean[r]) / columns + eps);
    }
  });
}

template <class Acc>
void lane_moments(const Acc* tile, int64_t rows, int64_t blocks, double eps, double* mean,
                  double* rstd) {
  constexpr int W = kWidth<Acc>;
  for (int64_t b = 0; b < blocks; ++b, tile += rows * kLanes<Acc>) {
    for (int c = 0; c < kLanes<Acc>; c += W, mean += W, rstd += W) {
      Wide<Acc> sum{}, squares{};
      for (int64_t r = 0; r < rows; ++r) sum = sum + widened(load(tile + r * kLanes<Acc> + c));
      const Wide<Acc> m = sum * (1.0 / rows);
      for (int64_t r = 0; r < rows; ++r) {
        const Wide<Acc> v = widened(load(tile + r * kLanes<Acc> + c)) - m;
        squares = squares + v * v;
      }
      __builtin_memcpy(mean, &m, sizeof(m));
      __builtin_memcpy(rstd, &squares, sizeof(squares));
      for (int i = 0; i < W; ++i) rstd[i] = inverse_root(rstd[i] / rows + eps);
    }
  }
}

// Calls f(row, column, count, place in the tile) for every piece of a row that fills a register.
template <class Acc, class F>
SHIFTMLP_INLINE void for_each_piece(const Transfer<Acc>& t, const F& f) {
  constexpr int W = kWidth<Acc>;
  for (int64_t row = 0; row < t.rows; ++row) {
    // Rows lie too far apart for the processor to foresee the next one.
    for (int64_t c = 0; c < t.columns; c += kLanes<Acc>) {
      if (row + kAhead < t.rows) {
        fetch<Acc>(t.memory, row + kAhead, c);
        if (t.residual.data != nullptr) fetch<Acc>(t.residual, row + kAhead, c);
      }
    }
    int64_t place = row * kLanes<Acc>;
    for (int64_t c = 0; c < t.columns; c += kLanes<Acc>, place += t.rows * kLanes<Acc>) {
      for (int lane = 0; lane < kLanes<Acc>; lane += W) {
        if (c + lane + W <= t.columns) {
          f(row, c + lane, All{}, place + lane);
        } else {
          f(row, c + lane, t.columns - c - lane, place + lane);
        }
      }
    }
  }
}

// The same for turned tiles: a square of kWidth rows, whose columns are rows of the tile.
template <class Acc, class F>
SHIFTMLP_INLINE void for_each_square(const Transfer<Acc>& t, const F& f) {
  constexpr int W = kWidth<Acc>;
  const int64_t padded = (t.rows + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
  for (int64_t row = 0; row < padded; row += W) {
    const int64_t lane = row % kLanes<Acc>, first = (row - lane) * t.columns + lane;
    for (int64_t c = 0; c < t.columns; c += W) {
      const int64_t count = t.columns - c, place = first + c * kLanes<Acc>;
      if (row + W <= t.rows && count >= W) {
        f(row, c, All{}, W, place);
      } else {
        f(row, c, count, count < W ? count : W, place);
      }
    }
  }
}

template <class Acc>
void pack(const Transfer<Acc>& given, Acc* tile) {
  // A copy, as stores might change what a reference shows.
  with_known(given, [&](const Transfer<Acc> from) __attribute__((always_inline)) {
    with_element<Acc>(from.memory.dtype, [&](auto as) __attribute__((always_inline)) {
      const auto* data = element(from.memory.data, as);
      const auto piece = [&](int64_t row, int64_t c, auto count) __attribute__((always_inline)) {
        if (!within(row, count, from.rows)) return V<Acc>{};
        const V<Acc> x = load<Acc>(data + row * from.memory.stride + c, count);
        return transformed(from, as, x, row, c, count);
      };
      if (from.turned) {
        for_each_square(from, [&](int64_t row, int64_t c, auto count, int64_t width, int64_t place)
                                  __attribute__((always_inline)) {
                                    V<Acc> square[kWidth<Acc>];
                                    for (int i = 0; i < kWidth<Acc>; ++i)
                                      square[i] = piece(row + i, c, count);
                                    transpose_square<Acc>(square);
                                    for (int i = 0; i < width; ++i)
                                      store(tile + place + i * kLanes<Acc>, square[i]);
                                  });
      } else {
        for_each_piece(from, [&](int64_t row, int64_t c, auto count, int64_t place) __attribute__((
                                 always_inline)) { store(tile + place, piece(row, c, count)); });
      }
    });
  });
}

template <class Acc>
void unpack(const Acc* tile, const Transfer<Acc>& given) {
  with_known(given, [&](const Transfer<Acc> to) __attribute__((always_inline)) {
    with_element<Acc>(to.memory.dtype, [&](auto as) __attribute__((always_inline)) {
      if (to.turned) {
        for_each_square(to, [&](int64_t row, int64_t c, auto count, int64_t width,
                                int64_t place) __attribute__((always_inline)) {
          V<Acc> square[kWidth<Acc>];
          for (int i = 0; i < kWidth<Acc>; ++i) {
            square[i] = i < width ? load(tile + place + i * kLanes<Acc>) : V<Acc>{};
          }
          transpose_square<Acc>(square);
          for (int i = 0; i < kWidth<Acc>; ++i) put(to, as, row + i, c, count, square[i]);
        });
      } else {
        for_each_piece(to, [&](int64_t row, int64_t c, auto count, int64_t place) __attribute__((
                               always_inline)) { put(to, as, row, c, count, load(tile + place)); });
      }
    });
  });
}

template <class Acc>
void gather_lanes(const Gathering<Acc>& given, Acc* tile) {
  constexpr int W = kWidth<Acc>;
  const Gathering<Acc> g = given;
  // The lanes of a register that stand side by side in the map, too: as a rule all, or two kinds.
  using Mask = typename Choice<sizeof(Acc) == 4, Integers, V<int64_t>>::type;
  struct Run {
    int64_t from;
    Mask lanes;
  };
  for (int64_t block = 0; block < g.blocks; ++block, tile += g.rows * kLanes<Acc>) {
    Run runs[kLanes<Acc>];
    int count = 0, ends[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      const int64_t* const from = g.from + block * kLanes<Acc> + c * W;
      const int first = count;
      for (int i = 0; i < W; ++i) {
        int run = first;
        while (run < count && runs[run].from != from[i] - i) ++run;
        if (from[i] < 0) continue;
        if (run == count) runs[count++] = Run{from[i] - i, Mask{}};
        runs[run].lanes[i] = -1;
      }
      ends[c] = count;
    }
    for (int64_t row = g.begin; row < g.end; row += g.stride) {
      const Acc* const map = g.map + row * g.pitch;
      int run = 0;
      for (int c = 0; c < kColumns; ++c) {
        V<Acc> v{};
        for (; run < ends[c]; ++run) v = runs[run].lanes ? load(map + runs[run].from) : v;
        store(tile + row * kLanes<Acc> + c * W, v);
      }
    }
  }
}

template <class Acc>
void scale_lanes(Acc* tile, int64_t rows, int64_t blocks, const Acc* scale) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t r = 0; r < rows; ++r, tile += kLanes<Acc>) {
      for (int c = 0; c < kLanes<Acc>; c += kWidth<Acc>) {
        store(tile + c, load(tile + c) * load(scale + b * kLanes<Acc> + c));
      }
    }
  }
}

// at(row, lane, count) are so many of a row's numbers.
template <class Acc, class F>
SHIFTMLP_INLINE void sum_rows(int64_t rows, int64_t lanes, Acc* sums, const F& at) {
  constexpr int W = kWidth<Acc>;
  for (int64_t first = 0; first < rows; first += W) {
    V<Acc> square[W] = {};
    for (int64_t r = first; r < rows && r < first + W; ++r) {
      for (int64_t lane = 0; lane < lanes; lane += W) {
        square[r - first] += at(r, lane, lanes - lane);
      }
    }
    transpose_square<Acc>(square);
    Wide<Acc> sum{};
    for (const V<Acc> v : square) sum = sum + widened(v);
    const int64_t count = rows - first;
    store<Acc>(sums + first, load<Acc>(sums + first, count) + rounded(sum), count);
  }
}

template <class Acc>
void sum_lanes(const Acc* tile, int64_t rows, int64_t lanes, bool, Acc* sums) {
  constexpr int64_t L = kLanes<Acc>;
  sum_rows<Acc>(rows, lanes, sums,
                [=](int64_t row, int64_t lane, int64_t count) __attribute__((always_inline)) {
                  return load<Acc>(tile + (lane / L * rows + row) * L + lane % L, count);
                });
}

template <class Acc>
void dot_rows(const Acc* a, const Acc* b, int64_t rows, int64_t blocks, Acc* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int c = 0; c < kLanes<Acc>; c += kWidth<Acc>) {
      Acc* out = sums + block * kLanes<Acc> + c;
      V<Acc> sum[4] = {};  // shorter sums err less
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = (block * rows + r) * kLanes<Acc> + c;
        sum[r % 4] += load(a + i) * load(b + i);
      }
      store(out, load(out) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
  }
}

}  // namespace
}  // namespace shiftmlp
