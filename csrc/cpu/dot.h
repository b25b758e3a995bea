// The product of bfloat16 weights with a tile, by an instruction that adds two products to a sum.
//
// It reads two neighbours of k at once, from a word with the first in its lower half. In weights
// whose rows are dense they lie like that, at no aligned address; the tile is rounded to bfloat16
// and paired in scratch, as a layer on its own would have rounded its input.
#pragma once

#include "pairs.h"

namespace shiftmlp {
namespace {

// 24 sums, 2 registers of the tile and the broadcast ones; a block's lanes take two turns.
constexpr int kPairRows = 12, kPairColumns = 2;
constexpr int64_t kPairTerms = 2;  // that a paired tile's rows are filled up to

// The tile's words and a panel's.
inline int64_t pair_scratch(int64_t K, int64_t) {
  return (K + 1) / 2 * (kLanes<float> + kWidth<float>);
}

// sum + a * b, of the upper halves and then of the lower. Denormals count as zero.
SHIFTMLP_INLINE Floats dot(Floats sum, Words a, Words b) {
#ifdef SHIFTMLP_DOT
  return (Floats)SHIFTMLP_DOT(sum, a, b);
#else
  const auto flushed = [](auto x) __attribute__((always_inline)) {
    const Words bits = (Words)x;
    return (Floats)((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
  };
  // A product of two bfloat16 is exact in float32: each line rounds once.
  sum = flushed(flushed(sum) + flushed(a & 0xffff0000) * flushed(b & 0xffff0000));
  return flushed(sum + flushed(a << 16) * flushed(b << 16));
#endif
}

// Up to kPairRows rows of the left operand: word (r, p) is at r * row + p * step. Behind the last
// word may stand a single k; the next panel lies `ahead`, 0 if it need not be fetched.
struct PairPanel {
  const BFloat16* data;
  int64_t row, step, words, ahead;
  bool single;
};

// Rows n ... n + rows, in place or gathered. Tiles, which have blocks, are never of bfloat16.
inline PairPanel pair_panel_of(const Product<float>& product, int64_t n, int64_t rows,
                               uint32_t* gathered) {
  constexpr int W = kWidth<float>;
  const Operand& left = product.left;
  const int64_t K = product.K, count = n + W <= product.N ? W : rows;
  const BFloat16* data = element(left.data, As<BFloat16>{}) + n * left.row;
  if (left.column == 1) return {data, left.row, 2, K / 2, kPairRows * left.row, K % 2 == 1};
  for (int64_t k = 0; k < K; k += 2, data += 2 * left.column) {
    const Words low = (Words)load<float>(data, count);
    const Words high = k + 1 < K ? (Words)load<float>(data + left.column, count) : Words{};
    store(gathered + k / 2 * W, high | low >> 16);
  }
  return {reinterpret_cast<const BFloat16*>(gathered), 2, 2 * W, (K + 1) / 2, 0, false};
}

// R rows of a product for some lanes of a block.
template <int R>
SHIFTMLP_INLINE void multiply_lanes(PairPanel panel, const uint32_t* right, const float* bias,
                                    bool accumulate, float* out) {
  constexpr int C = kPairColumns, W = kWidth<float>;
  constexpr int64_t kLine = 64 / sizeof(uint32_t);
  // From two rows, as offsets from one of them to eleven others outnumber the registers.
  constexpr int kHalf = (R + 1) / 2;
  const BFloat16* left[] = {panel.data, panel.data + kHalf * panel.row};
  Floats sum[R][C] = {};
  const auto step = [&](auto word) __attribute__((always_inline)) {
    Words x[C];
    for (int c = 0; c < C; ++c) x[c] = read<Words>(right + c * W);
    for (int r = 0; r < R; ++r) {
      const Words w = Words{} + word(left[r / kHalf] + r % kHalf * panel.row);
      for (int c = 0; c < C; ++c) sum[r][c] = dot(sum[r][c], w, x[c]);
    }
    left[0] += panel.step, left[1] += panel.step, right += kLanes<float>;
  };
  for (int64_t p = 0; p < panel.words; p += kLine) {
    if (panel.ahead != 0) {
      for (int r = 0; r < R; ++r) __builtin_prefetch(left[0] + panel.ahead + r * panel.row);
    }
    const int64_t rest = panel.words - p;
    const uint32_t* const end = right + (rest < kLine ? rest : kLine) * kLanes<float>;
    while (right != end) step([](const BFloat16* at) { return read<uint32_t>(at); });
  }
  if (panel.single) step([](const BFloat16* at) { return uint32_t{at->bits}; });
#pragma GCC unroll 12  // as in gemm.h
  for (int r = 0; r < R; ++r) {
    const float constant = bias != nullptr ? bias[r] : 0;
    for (int c = 0; c < C; ++c) {
      float* const to = out + r * kLanes<float> + c * W;
      store(to, (accumulate ? load(to) + sum[r][c] : sum[r][c]) + constant);
    }
  }
}

template <int R = kPairRows>
SHIFTMLP_INLINE void multiply_pair_rows(int64_t rows, PairPanel panel, const uint32_t* right,
                                        const float* bias, bool accumulate, float* out) {
  if constexpr (R > 0) {
    if (rows == R) return multiply_lanes<R>(panel, right, bias, accumulate, out);
    multiply_pair_rows<R - 1>(rows, panel, right, bias, accumulate, out);
  }
}

inline void multiply_pairs(const Product<float>& product) {
  constexpr int64_t L = kLanes<float>;
  const int64_t K = product.K, N = product.N, pairs = pairs_of(K, kPairTerms);
  uint32_t* const words = reinterpret_cast<uint32_t*>(product.scratch);
  uint32_t* const gathered = words + pairs * L;
  for (int64_t block = 0; block * L < product.lanes; ++block) {
    const bool ready = product.pairing.right;
    const float* const tile = product.right + block * (ready ? pairs : K) * L;
    if (!ready) pair_rows(tile, K, pairs, words);
    const uint32_t* const right = ready ? reinterpret_cast<const uint32_t*>(tile) : words;
    for (int64_t n = 0; n < N; n += kPairRows) {
      const int64_t rows = N - n < kPairRows ? N - n : kPairRows;
      PairPanel panel = pair_panel_of(product, n, rows, gathered);
      const auto make = [&](const float* bias, float* out) {
        for (int c = 0; c < L; c += kPairColumns * kWidth<float>, panel.ahead = 0) {
          multiply_pair_rows(rows, panel, right + c, bias, product.accumulate, out + c);
        }
      };
      if (!product.pairing.out) {
        finish_rows<kPairRows>(product, n, rows, block, make);
        continue;
      }
      alignas(64) float piece[kPairRows * L];
      make(product.bias == nullptr ? nullptr : product.bias + n, piece);
      activate_rows(product, n, rows, block, piece);
      const Pairs to = pairs_at(product, n, block, kPairTerms);
      pair_rows(piece, rows, (rows + 1) / 2, to.data, to.pitch);
    }
  }
}

}  // namespace
}  // namespace shiftmlp
