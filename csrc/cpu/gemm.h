// The product of a matrix in memory with a tile: the one loop in which the time goes.
//
// The left operand's elements are broadcast, so that its rows are read as they stand; a copy of
// the weights could turn stale, and there is none. The tile's lanes fill the registers.
#pragma once

#include "activation.h"
#include "transfer.h"

namespace shiftmlp {
namespace {

// The distance of the k of a panel that lies column by column.
template <class Acc>
constexpr int kStep = (kRows + kWidth<Acc> - 1) / kWidth<Acc> * kWidth<Acc>;

template <class Acc>
int64_t gather_scratch(int64_t K, int64_t) {
  return K * kStep<Acc>;
}

// Up to kRows rows of a left operand: element (r, k) is at r * row + k * column. Rows `next` ...
// `end` are of the next panel and fetched meanwhile.
template <class Acc>
struct Panel {
  const Acc* data;
  int64_t row, column, next = 0, end = 0;
};

// A product sums in parts of at most so many terms, which err less than one sum. Fewer than 64 make
// four parts: of 49, the error is 0.6 times that of one sum, for 7 % more time (float32, AVX2).
constexpr int64_t kTerms = 128, kFewTerms = 64;

// R rows of a product for one block of lanes, or for its first register alone: then the registers
// of sums take turns at the terms, as fewer sums would wait for each other.
template <int R, bool kNarrow, class Acc>
SHIFTMLP_INLINE void multiply_block(Panel<Acc> panel, const Acc* right, int64_t K, const Acc* bias,
                                    bool accumulate, Acc* out) {
  const Acc* left = panel.data;
  constexpr int64_t kLine = 64 / sizeof(Acc), kTurns = kNarrow ? kColumns : 1;
  // Rows a multiple of 4 KiB apart have the same places in the first-level cache, where two panels
  // of them would drive each other out: the next one waits in the second level.
  const bool kept_apart = panel.row * sizeof(Acc) % 4096 != 0;
  const int64_t parts = K < kFewTerms ? 4 : (K + kTerms - 1) / kTerms;
  const int64_t most = (K + parts - 1) / parts;
  do {
    const int64_t terms = K < most ? K : most;
    V<Acc> sum[R][kColumns] = {};
    for (int64_t k = 0; k < terms; k += kLine) {
      for (int64_t r = panel.next; r < panel.end; ++r) {
        const Acc* const at = left + r * panel.row;
        kept_apart ? __builtin_prefetch(at) : __builtin_prefetch(at, 0, 2);
      }
      const Acc* const end = right + (terms - k < kLine ? terms - k : kLine) * kLanes<Acc>;
#pragma GCC unroll 2
      for (; end - right >= kTurns * kLanes<Acc>; right += kTurns * kLanes<Acc>) {
        V<Acc> x[kColumns];
        for (int c = 0; c < kColumns; ++c) {
          x[c] = load(right + c * (kNarrow ? kLanes<Acc> : kWidth<Acc>));
        }
        for (int r = 0; r < R; ++r) {
          for (int c = 0; c < kColumns; ++c) {
            sum[r][c] += left[r * panel.row + (kNarrow ? c : 0) * panel.column] * x[c];
          }
        }
        left += kTurns * panel.column;
      }
      for (; kNarrow && right != end; left += panel.column, right += kLanes<Acc>) {
        for (int r = 0; r < R; ++r) sum[r][0] += left[r * panel.row] * load(right);
      }
    }
    K -= terms;
    for (int r = 0; kNarrow && r < R; ++r) {
      for (int c = 1; c < kColumns; ++c) sum[r][0] += sum[r][c], sum[r][c] = V<Acc>{};
    }
    // Else clang keeps the sums in memory, where a loop can index them.
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Acc constant = K == 0 && bias != nullptr ? bias[r] : 0;
      for (int c = 0; c < kColumns; ++c) {
        Acc* const to = out + r * kLanes<Acc> + c * kWidth<Acc>;
        store(to, (accumulate ? load(to) + sum[r][c] : sum[r][c]) + constant);
      }
    }
    accumulate = true;
  } while (K > 0);
}

template <bool kNarrow, class Acc, int R = kRows>
SHIFTMLP_INLINE void multiply_rows(int64_t rows, Panel<Acc> panel, const Acc* right, int64_t K,
                                   const Acc* bias, bool accumulate, Acc* out) {
  if constexpr (R > 0) {
    if (rows == R) return multiply_block<R, kNarrow>(panel, right, K, bias, accumulate, out);
    multiply_rows<kNarrow, Acc, R - 1>(rows, panel, right, K, bias, accumulate, out);
  }
}

// Rows n ... n + rows of the left operand: in place, or converted and gathered in scratch.
template <class Acc>
Panel<Acc> panel_of(const Product<Acc>& product, int64_t n, int64_t rows) {
  const Operand& left = product.left;
  const int64_t K = product.K;
  Panel<Acc> panel{product.scratch, K, 1};
  with_element<Acc>(left.dtype, [&](auto as) __attribute__((always_inline)) {
    const auto* data = element(left.data, as) + n * left.row;
    constexpr int W = kWidth<Acc>;
    if (left.column != 1) {
      panel = {product.scratch, 1, kStep<Acc>};
      for (int64_t k = 0; k < K; ++k, data += left.column) {
        for (int r = 0; r < kStep<Acc>; r += W) {
          const int64_t count = n + r + W <= product.N ? W : rows - r;
          store(product.scratch + k * kStep<Acc> + r, load<Acc>(data + r, count));
        }
      }
    } else if (sizeof(*data) != sizeof(Acc) || left.block < K) {
      for (int64_t r = 0; r < rows; ++r, data += left.row) {
        Acc* to = product.scratch + r * K;
        for (int64_t k = 0; k < K; k += left.block) {
          const auto* from = data + k * product.N;
          const int64_t end = left.block < K - k ? left.block : K - k;
          int64_t i = 0;
          for (; i + W <= end; i += W) store(to + k + i, load(from + i));
          if (i < end) store<Acc>(to + k + i, load<Acc>(from + i, end - i), end - i);
        }
      }
    } else {
      panel = {reinterpret_cast<const Acc*>(data), left.row, 1};
    }
  });
  return panel;
}

// Rows n ... n + rows of a block into the cache, and from a tile, plus their bias, to their place.
template <class Acc>
void fetch_rows(const Transfer<Acc>& to, int64_t n, int64_t rows, int64_t block) {
  for (int64_t r = n; r < n + rows; ++r) {
    fetch<Acc>(to.memory, r, block * kLanes<Acc>);
    if (to.residual.data != nullptr) fetch<Acc>(to.residual, r, block * kLanes<Acc>);
  }
}

template <class Acc>
void put_rows(const Transfer<Acc>& given, int64_t n, int64_t rows, int64_t block, const Acc* tile,
              const Acc* bias = nullptr) {
  with_known(given, [&](const Transfer<Acc> to) __attribute__((always_inline)) {
    with_element<Acc>(to.memory.dtype, [&](auto as) __attribute__((always_inline)) {
      const Acc* from = tile;
      for (int64_t r = n; r < n + rows; ++r) {
        for (int lane = 0; lane < kLanes<Acc>; lane += kWidth<Acc>, from += kWidth<Acc>) {
          const int64_t c = block * kLanes<Acc> + lane;
          const V<Acc> v = bias == nullptr ? load(from) : load(from) + bias[r];
          if (c + kWidth<Acc> <= to.columns) {
            put(to, as, r, c, All{}, v);
          } else {
            put(to, as, r, c, to.columns - c, v);
          }
        }
      }
    });
  });
}

// What a product does to its sums, for rows n ... n + rows of a block.
template <class Acc>
void activate_rows(const Product<Acc>& product, int64_t n, int64_t rows, int64_t block, Acc* sums) {
  const int64_t count = rows * kLanes<Acc>, from = (block * product.N + n) * kLanes<Acc>;
  if (product.slopes == nullptr) {
    activate_all(product.activation, sums, count);
  } else if (product.backward) {
    activate_backward(product.activation, product.slopes + from, count, sums);
  } else {
    activate_and_slope(product.activation, sums, count, product.slopes + from);
  }
}

// Rows n ... n + rows of a product, at most R, for one block: f(bias, out) makes them as a tile.
template <int R, class Acc, class F>
SHIFTMLP_INLINE void finish_rows(const Product<Acc>& product, int64_t n, int64_t rows,
                                 int64_t block, const F& f) {
  alignas(64) Acc piece[R * kLanes<Acc>];
  const Transfer<Acc>* to = product.to;
  if (to != nullptr) fetch_rows(*to, n, rows, block);
  Acc* out = to ? piece : product.out + (block * product.N + n) * kLanes<Acc>;
  f(product.bias == nullptr ? nullptr : product.bias + n, out);
  activate_rows(product, n, rows, block, out);
  if (to != nullptr) put_rows(*to, n, rows, block, out);
}

template <class Acc>
void multiply(const Product<Acc>& product) {
  const int64_t K = product.K, N = product.N;
  const int64_t blocks = (product.lanes + kLanes<Acc> - 1) / kLanes<Acc>;
  for (int64_t n = 0; n < N; n += kRows) {
    const int64_t rows = N - n < kRows ? N - n : kRows;
    Panel<Acc> panel = panel_of(product, n, rows);
    for (int64_t block = 0; block < blocks; ++block) {
      if (panel.data != product.scratch) {
        panel.next = kRows + kRows * block / blocks;
        panel.end = kRows + kRows * (block + 1) / blocks;
      }
      const Acc* right = product.right + block * K * kLanes<Acc>;
      const bool narrow = product.lanes - block * kLanes<Acc> <= kWidth<Acc>;
      finish_rows<kRows>(
          product, n, rows, block, [&](const Acc* bias, Acc* out) __attribute__((always_inline)) {
            narrow ? multiply_rows<true>(rows, panel, right, K, bias, product.accumulate, out)
                   : multiply_rows<false>(rows, panel, right, K, bias, product.accumulate, out);
          });
    }
  }
}

}  // namespace
}  // namespace shiftmlp
