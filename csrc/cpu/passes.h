// What happens to numbers before and after a product.
#pragma once

#include "gemm.h"

namespace shiftmlp {
namespace {

template <class Acc>
SHIFTMLP_INLINE Acc sum_of(V<Acc> v) {
  for (int n = kWidth<Acc> / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) v[i] += v[i + n];
  }
  return v[0];
}

// The sum of f(x) over a row.
template <class Acc, class T, class F>
SHIFTMLP_INLINE Acc sum_row(const T* x, int64_t columns, const F& f) {
  constexpr int W = kWidth<Acc>;
  V<Acc> sums[4] = {};  // independent, as a sum waits for the one before
  int64_t c = 0;
  for (; c + 4 * W <= columns; c += 4 * W) {
    for (int i = 0; i < 4; ++i) sums[i] += f(load(x + c + i * W));
  }
  for (; c + W <= columns; c += W) sums[0] += f(load(x + c));
  Acc sum = sum_of<Acc>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (c < columns) {
    V<Acc> last = f(load<Acc>(x + c, columns - c));
    for (int64_t i = columns - c; i < W; ++i) last[i] = 0;
    sum += sum_of<Acc>(last);
  }
  return sum;
}

struct Itself {
  template <class Vector>
  SHIFTMLP_INLINE Vector operator()(Vector v) const {
    return v;
  }
};

template <class Acc>
SHIFTMLP_INLINE V<Acc> inverse_root(V<Acc> x) {
  for (int i = 0; i < kWidth<Acc>; ++i) {
    x[i] = 1 / (sizeof(Acc) == 8 ? __builtin_sqrt(x[i]) : __builtin_sqrtf(x[i]));
  }
  return x;
}

template <class Acc>
void moments(Rows x, int64_t rows, int64_t columns, double eps, Acc* mean, Acc* rstd) {
  with_element<Acc>(x.dtype, [&](auto as) __attribute__((always_inline)) {
    const auto* row = element(x.data, as);
    for (int64_t r = 0; r < rows; ++r, row += x.stride) {
      const Acc m = sum_row<Acc>(row, columns, Itself{}) / columns;
      const auto square = [m](V<Acc> v)
                              __attribute__((always_inline)) { return (v - m) * (v - m); };
      const Acc squares = sum_row<Acc>(row, columns, square);
      mean[r] = m;
      rstd[r] = inverse_root<Acc>(V<Acc>{} + (squares / columns + static_cast<Acc>(eps)))[0];
    }
  });
}

template <class Acc>
void lane_moments(const Acc* tile, int64_t rows, int64_t blocks, double eps, Acc* mean, Acc* rstd) {
  for (int64_t b = 0; b < blocks; ++b, tile += rows * kLanes<Acc>) {
    for (int c = 0; c < kLanes<Acc>; c += kWidth<Acc>) {
      V<Acc> m{}, squares{};
      for (int64_t r = 0; r < rows; ++r) m += load(tile + r * kLanes<Acc> + c);
      m /= V<Acc>{} + static_cast<Acc>(rows);
      for (int64_t r = 0; r < rows; ++r) {
        const V<Acc> v = load(tile + r * kLanes<Acc> + c) - m;
        squares += v * v;
      }
      store(mean + b * kLanes<Acc> + c, m);
      const V<Acc> variance = squares / (V<Acc>{} + static_cast<Acc>(rows));
      store(rstd + b * kLanes<Acc> + c, inverse_root<Acc>(variance + static_cast<Acc>(eps)));
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
        return transformed(from, x, row, c, count);
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
void transpose(const Acc* tile, int64_t rows, int64_t lanes, Acc* turned) {
  // A tile is rows in memory for one block at a time.
  for (int64_t first = 0; first < lanes; first += kLanes<Acc>) {
    const Acc* block = tile + first * rows;
    for (int64_t r = 0; r < rows; r += kWidth<Acc>) {
      Acc* out = turned + (r / kLanes<Acc> * lanes + first) * kLanes<Acc> + r % kLanes<Acc>;
      for (int64_t lane = 0; lane < kLanes<Acc> && first + lane < lanes; lane += kWidth<Acc>) {
        V<Acc> square[kWidth<Acc>];
        for (int i = 0; i < kWidth<Acc>; ++i) {
          square[i] = r + i < rows ? load(block + (r + i) * kLanes<Acc> + lane) : V<Acc>{};
        }
        transpose_square<Acc>(square);
        for (int i = 0; i < kWidth<Acc> && first + lane + i < lanes; ++i) {
          store(out + (lane + i) * kLanes<Acc>, square[i]);
        }
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

template <class Acc>
void sum_lanes(const Acc* tile, int64_t rows, int64_t lanes, Acc* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    Acc sum = 0;
    for (int64_t first = 0; first < lanes; first += kLanes<Acc>) {
      const int64_t count = lanes - first < kLanes<Acc> ? lanes - first : kLanes<Acc>;
      sum += sum_row<Acc>(tile + first * rows + r * kLanes<Acc>, count, Itself{});
    }
    sums[r] += sum;
  }
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
