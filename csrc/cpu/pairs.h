// Tiles of words, each two neighbouring rows rounded to bfloat16, the first in its lower half: what
// the products with bfloat16 weights read.
#pragma once

#include "gemm.h"

namespace shiftmlp {
namespace {

SHIFTMLP_INLINE void store(uint32_t* y, Words v) { __builtin_memcpy(y, &v, sizeof(v)); }

using Halves = VectorOf<uint16_t, 2 * kWidth<float>>::type;

template <int... kHalf>
SHIFTMLP_INLINE Words interleaved(Halves low_high, Indices<kHalf...>) {
  constexpr int W = kWidth<float>;
  return (Words)__builtin_shufflevector(low_high, low_high, (kHalf / 2 + kHalf % 2 * W)...);
}

// The two rounded, one behind the other.
SHIFTMLP_INLINE Halves narrowed(Floats low, Floats high) {
#ifdef SHIFTMLP_NARROW_TWO
  return (Halves)SHIFTMLP_NARROW_TWO(low, high);
#else
  const Shorts both[] = {narrow(low, BFloat16{}), narrow(high, BFloat16{})};
  return read<Halves>(&both);
#endif
}

// The two rounded and side by side in words.
SHIFTMLP_INLINE Words paired(Floats low, Floats high) {
  return interleaved(narrowed(low, high), IndicesBelow<2 * kWidth<float>>::type{});
}

// Pairs of rows, filled up to a multiple of so many rows.
inline int64_t pairs_of(int64_t K, int64_t multiple) {
  return (K + multiple - 1) / multiple * multiple / 2;
}

// The words of a block's rows, zero beyond the last.
inline void pair_rows(const float* right, int64_t K, int64_t pairs, uint32_t* words,
                      int64_t pitch = kLanes<float>) {
  for (int64_t k = 0; k < 2 * pairs; k += 2, right += 2 * kLanes<float>, words += pitch) {
    for (int c = 0; c < kLanes<float>; c += kWidth<float>) {
      const Floats low = k < K ? load(right + c) : Floats{};
      const Floats high = k + 1 < K ? load(right + kLanes<float> + c) : Floats{};
      store(words + c, paired(low, high));
    }
  }
}

// What a register of `count` numbers has behind them becomes zero.
SHIFTMLP_INLINE Floats cut(Floats v, All) { return v; }
SHIFTMLP_INLINE Floats cut(Floats v, int64_t count) {
  float all[kWidth<float>];
  store(all, v);
  return load<float>(all, count);
}

// pack for a paired tile.
inline void pack_pairs(const Transfer<float>& given, int64_t multiple, float* tile) {
  constexpr int W = kWidth<float>, L = kLanes<float>;
  uint32_t* const words = reinterpret_cast<uint32_t*>(tile);
  with_known(given, [&](const Transfer<float> from) __attribute__((always_inline)) {
    with_element<float>(from.memory.dtype, [&](auto as) __attribute__((always_inline)) {
      const auto* data = element(from.memory.data, as);
      const auto piece = [&](int64_t row, int64_t c, auto count) __attribute__((always_inline)) {
        if (row >= from.rows || !within(row, count, from.rows)) return Floats{};
        const Floats x = load<float>(data + row * from.memory.stride + c, count);
        return cut(transformed(from, as, x, row, c, count), count);
      };
      const int64_t lanes = from.turned ? from.rows : from.columns;
      const int64_t pairs = pairs_of(from.turned ? from.columns : from.rows, multiple);
      const auto place = [&](int64_t pair, int64_t lane) __attribute__((always_inline)) {
        return words + (lane / L * pairs + pair) * L + lane % L;
      };
      if (from.turned) {
        // A square of words: of kWidth rows, twice as many columns, which lie in pairs.
        for (int64_t row = 0; row < (lanes + L - 1) / L * L; row += W) {
          for (int64_t p = 0; p < pairs; p += W) {
            const int64_t c = 2 * p, count = from.columns - c;
            const auto square_of = [&](auto low, auto high) __attribute__((always_inline)) {
              Floats square[W];
              for (int i = 0; i < W; ++i) {
                square[i] = (Floats)narrowed(piece(row + i, c, low), piece(row + i, c + W, high));
              }
              transpose_square<float>(square);
              for (int i = 0; i < W && p + i < pairs; ++i) {
                store(place(p + i, row), (Words)square[i]);
              }
            };
            count >= 2 * W ? square_of(All{}, All{}) : square_of(count, count - W);
          }
        }
      } else {
        for (int64_t p = 0; p < pairs; ++p) {
          for (int64_t c = 0; c < (lanes + L - 1) / L * L; c += W) {
            if (c % L == 0 && 2 * p + kAhead + 1 < from.rows) {
              fetch<float>(from.memory, 2 * p + kAhead, c);
              fetch<float>(from.memory, 2 * p + kAhead + 1, c);
            }
            const auto pair = [&](auto count) __attribute__((always_inline)) {
              store(place(p, c), paired(piece(2 * p, c, count), piece(2 * p + 1, c, count)));
            };
            c + W <= lanes ? pair(All{}) : pair(lanes - c);
          }
        }
      }
    });
  });
}

// pack for an engine with paired tiles, besides which it is that for AVX-512.
template <int64_t kMultiple>
void pack_either(const Transfer<float>& from, float* tile) {
  from.paired ? pack_pairs(from, kMultiple, tile)
              : shiftmlp_engines_avx512()->single.pack(from, tile);
}

// Where a product's pairs stand for a block, from row n on, which is even.
struct Pairs {
  uint32_t* data;
  int64_t pitch;
};

inline Pairs pairs_at(const Product<float>& product, int64_t n, int64_t block, int64_t multiple) {
  constexpr int64_t L = kLanes<float>;
  if (product.to != nullptr) {
    const Rows to = product.to->memory;
    return {static_cast<uint32_t*>(to.data) + n / 2 * to.stride + block * L, to.stride};
  }
  const int64_t pair = block * pairs_of(product.N, multiple) + n / 2;
  return {reinterpret_cast<uint32_t*>(product.out) + pair * L, L};
}

}  // namespace
}  // namespace shiftmlp
