// What happens to numbers before and after a product.
#pragma once

#include "gemm.h"

namespace shiftmlp {
namespace {

template <class Acc>
SHIFTMLP_INLINE Acc sum_of(V<Acc> v) {
  Acc sum = 0;
  for (int i = 0; i < kWidth<Acc>; ++i) sum += v[i];
  return sum;
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
    const V<Acc> last = f(load<Acc>(x + c, columns - c));
    for (int64_t i = 0; i < columns - c; ++i) sum += last[i];
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
      const auto square = [m](V<Acc> v) __attribute__((always_inline)) { return (v - m) * (v - m); };
      const Acc squares = sum_row<Acc>(row, columns, square);
      mean[r] = m;
      rstd[r] = inverse_root<Acc>(V<Acc>{} + (squares / columns + static_cast<Acc>(eps)))[0];
    }
  });
}

template <class Acc>
void lane_moments(const Acc* tile, int64_t rows, int64_t blocks, double eps, Acc* mean,
                  Acc* rstd) {
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

template <class Acc>
SHIFTMLP_INLINE V<Acc> load_rows(Rows x, int64_t row, int64_t column, int64_t count) {
  V<Acc> v;
  with_element<Acc>(x.dtype, [&](auto as) __attribute__((always_inline)) {
    v = load<Acc>(element(x.data, as) + row * x.stride + column, count);
  });
  return v;
}

// norm(v) * scale * factor of `count` columns of a row.
template <class Acc>
SHIFTMLP_INLINE V<Acc> transformed(const Transfer<Acc>& t, V<Acc> v, int64_t row, int64_t column,
                                   int64_t count) {
  const Norm<Acc>& norm = t.norm;
  if (norm.mean != nullptr) v = (v - norm.mean[row]) * norm.rstd[row];
  if (norm.weight != nullptr) v *= load<Acc>(norm.weight + column, count);
  if (norm.bias != nullptr) v += load<Acc>(norm.bias + column, count);
  if (t.scale != nullptr) v *= load<Acc>(t.scale + column, count);
  if (t.factor.data != nullptr) v *= load_rows<Acc>(t.factor, row, column, count);
  return v;
}

// Calls f(row, column, count, place in the tile) for every piece of a row that fills a register.
template <class Acc, class F>
SHIFTMLP_INLINE void for_each_piece(const Transfer<Acc>& t, const F& f) {
  const int64_t padded = (t.columns + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
  for (int64_t row = 0; row < t.rows; ++row) {
    for (int64_t c = 0; c < padded; c += kWidth<Acc>) {
      const int64_t block = c / kLanes<Acc>, lane = c % kLanes<Acc>;
      f(row, c, t.columns - c, (block * t.rows + row) * kLanes<Acc> + lane);
    }
  }
}

// The same for turned tiles: a square of kWidth rows, whose columns are rows of the tile.
template <class Acc, class F>
SHIFTMLP_INLINE void for_each_square(const Transfer<Acc>& t, const F& f) {
  const int64_t padded = (t.rows + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
  for (int64_t row = 0; row < padded; row += kWidth<Acc>) {
    const int64_t block = row / kLanes<Acc>, lane = row % kLanes<Acc>;
    for (int64_t c = 0; c < t.columns; c += kWidth<Acc>) {
      const int64_t left = t.columns - c;
      f(row, c, left < kWidth<Acc> ? left : kWidth<Acc>,
        (block * t.columns + c) * kLanes<Acc> + lane);
    }
  }
}

template <class Acc>
void pack(const Transfer<Acc>& from, Acc* tile) {
  with_element<Acc>(from.memory.dtype, [&](auto as) __attribute__((always_inline)) {
    const auto* data = element(from.memory.data, as);
    const auto piece = [&](int64_t row, int64_t c, int64_t count) __attribute__((always_inline)) {
      if (row >= from.rows || count <= 0) return V<Acc>{};
      const V<Acc> x = load<Acc>(data + row * from.memory.stride + c, count);
      return transformed(from, x, row, c, count);
    };
    if (from.turned) {
      for_each_square(from, [&](int64_t row, int64_t c, int64_t count, int64_t place)
                                __attribute__((always_inline)) {
        V<Acc> square[kWidth<Acc>];
        for (int i = 0; i < kWidth<Acc>; ++i) square[i] = piece(row + i, c, count);
        transpose_square<Acc>(square);
        for (int i = 0; i < count; ++i) store(tile + place + i * kLanes<Acc>, square[i]);
      });
    } else {
      for_each_piece(from, [&](int64_t row, int64_t c, int64_t count, int64_t place)
                               __attribute__((always_inline)) {
        store(tile + place, piece(row, c, count));
      });
    }
  });
}

template <class Acc>
void unpack(const Acc* tile, const Transfer<Acc>& to) {
  with_element<Acc>(to.memory.dtype, [&](auto as) __attribute__((always_inline)) {
    auto* data = element(to.memory.data, as);
    const auto put = [&](int64_t row, int64_t c, int64_t count, V<Acc> v)
                         __attribute__((always_inline)) {
      if (row >= to.rows || count <= 0) return;
      v = transformed(to, v, row, c, count);
      if (to.residual.data != nullptr) v += load_rows<Acc>(to.residual, row, c, count);
      store<Acc>(data + row * to.memory.stride + c, v, count);
    };
    if (to.turned) {
      for_each_square(to, [&](int64_t row, int64_t c, int64_t count, int64_t place)
                              __attribute__((always_inline)) {
        V<Acc> square[kWidth<Acc>];
        for (int i = 0; i < kWidth<Acc>; ++i) {
          square[i] = i < count ? load(tile + place + i * kLanes<Acc>) : V<Acc>{};
        }
        transpose_square<Acc>(square);
        for (int i = 0; i < kWidth<Acc>; ++i) put(row + i, c, count, square[i]);
      });
    } else {
      for_each_piece(to, [&](int64_t row, int64_t c, int64_t count, int64_t place)
                             __attribute__((always_inline)) {
        put(row, c, count, load(tile + place));
      });
    }
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
void sum_lanes(const Acc* tile, int64_t rows, int64_t lanes, Acc* sums) {
  for (int64_t first = 0; first < lanes; first += kLanes<Acc>) {
    const int64_t count = lanes - first < kLanes<Acc> ? lanes - first : kLanes<Acc>;
    for (int64_t r = 0; r < rows; ++r) {
      sums[r] += sum_row<Acc>(tile + first * rows + r * kLanes<Acc>, count, Itself{});
    }
  }
}

template <class Acc>
void dot_rows(const Acc* a, const Acc* b, int64_t rows, int64_t blocks, Acc* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int c = 0; c < kLanes<Acc>; c += kWidth<Acc>) {
      Acc* out = sums + block * kLanes<Acc> + c;
      V<Acc> sum = load(out);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = (block * rows + r) * kLanes<Acc> + c;
        sum += load(a + i) * load(b + i);
      }
      store(out, sum);
    }
  }
}

template <class Acc>
constexpr Engine<Acc> kEngine = {
    kLanes<Acc>,   kStep<Acc>,        moments<Acc>,   lane_moments<Acc>, pack<Acc>,
    unpack<Acc>,   multiply<Acc>,     transpose<Acc>, activate_all<Acc>, activate_backward<Acc>,
    sum_lanes<Acc>, dot_rows<Acc>,
};

}  // namespace
}  // namespace shiftmlp
