// The product of bfloat16 weights with a tile by AMX, in registers of 16 rows of 16 words, each
// word two neighbours of k, as in dot.h.
#pragma once

#include "dot.h"

namespace shiftmlp {
namespace {

// GELU where the result will be rounded to bfloat16: as in activation.h, with a polynomial for
// P(-t). It errs by 5.2e-5, and at most by a tenth of what rounding x to bfloat16 does.
SHIFTMLP_INLINE Floats coarse_gelu(Floats x) {
  const float end = 5;  // from where on it is 0
  const Floats half = 0.5f * x, t = at_most(absolute(x), end);
  const Floats p = polynomial(t, -1.58678529e-06f, 4.2203148e-05f, -0.000465648714f, 0.002691478f,
                              -0.00822284911f, 0.0101424167f, 0.00616323063f, -0.0110843452f,
                              -0.059559606f, 0.0999470651f);
  return (half + absolute(half)) - t * ((end - t) * p);
}

constexpr int kSide = 16;                  // rows of a register, and words of each
constexpr int kPanel = 2 * kSide;          // rows of the left operand at a time
constexpr int64_t kStepTerms = 2 * kSide;  // a register's k
constexpr int kStrip = 2 * kSide;          // lanes at a time: four registers have the sums
static_assert(kWidth<float> == kSide && kLanes<float> == 2 * kStrip);

#ifdef SHIFTMLP_EMULATED
thread_local Words registers[8][kSide];

struct Registers {};
template <int kTo>
void load_tile(const void* from, int64_t bytes) {
  for (int r = 0; r < kSide; ++r) {
    __builtin_memcpy(&registers[kTo][r], static_cast<const char*>(from) + r * bytes, 64);
  }
}
template <int kFrom>
void store_tile(float* to, int64_t bytes) {
  for (int r = 0; r < kSide; ++r) {
    __builtin_memcpy(reinterpret_cast<char*>(to) + r * bytes, &registers[kFrom][r], 64);
  }
}
template <int kTo>
void clear_tile() {
  for (Words& row : registers[kTo]) row = Words{};
}
template <int kSum, int kLeft, int kRight>
void dot_tiles() {
  for (int r = 0; r < kSide; ++r) {
    auto sum = (Floats)registers[kSum][r];
    for (int p = 0; p < kSide; ++p) {
      sum = dot(sum, Words{} + registers[kLeft][r][p], registers[kRight][p]);
    }
    registers[kSum][r] = (Words)sum;
  }
}
inline Halves load_terms(const BFloat16* from, int64_t count) {
  Halves terms{};
  __builtin_memcpy(&terms, from, (count < kStepTerms ? count : kStepTerms) * sizeof(*from));
  return terms;
}
#else
// The shape of all registers, as LDTILECFG reads it; each product sets it, as others' code may have
// left its own.
struct alignas(64) Registers {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16];
  uint8_t rows[16];

  Registers() {
    for (int i = 0; i < 16; ++i) bytes[i] = i < 8 ? 64 : 0, rows[i] = i < 8 ? kSide : 0;
    asm volatile("ldtilecfg %0" ::"m"(*this));
  }
  ~Registers() { asm volatile("tilerelease"); }
  Registers(const Registers&) = delete;
};
template <int kTo>
SHIFTMLP_INLINE void load_tile(const void* from, int64_t bytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTo), "r"(from), "r"(bytes) : "memory");
}
template <int kFrom>
SHIFTMLP_INLINE void store_tile(float* to, int64_t bytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kFrom), "r"(to), "r"(bytes) : "memory");
}
template <int kTo>
SHIFTMLP_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTo));
}
template <int kSum, int kLeft, int kRight>
SHIFTMLP_INLINE void dot_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}
SHIFTMLP_INLINE Halves load_terms(const BFloat16* from, int64_t count) {
  if (count >= kStepTerms) return read<Halves>(from);
  return (Halves)_mm512_maskz_loadu_epi16((1u << count) - 1, from);
}
#endif

inline int64_t steps_of(int64_t K) { return (K + kStepTerms - 1) / kStepTerms; }

// Rows a power of two apart would have the same places in the cache.
inline int64_t gathered_pitch(int64_t K) { return (steps_of(K) + 1) * kStepTerms; }

// The tile's words and two panels, in 4 bytes an element.
inline int64_t tile_scratch(int64_t K) {
  return steps_of(K) * kSide * kLanes<float> + kPanel * gathered_pitch(K);
}

// A block's rows as words, strip by strip, zero beyond the last.
inline void pair_strips(const float* right, int64_t K, uint32_t* words) {
  const int64_t pairs = steps_of(K) * kSide;
  for (int64_t p = 0; p < pairs; ++p, right += 2 * kLanes<float>) {
    for (int c = 0; c < kLanes<float>; c += kWidth<float>) {
      const Floats low = 2 * p < K ? load(right + c) : Floats{};
      const Floats high = 2 * p + 1 < K ? load(right + kLanes<float> + c) : Floats{};
      store(words + (c / kStrip * pairs + p) * kStrip + c % kStrip, paired(low, high));
    }
  }
}

// Rows of the left operand.
struct PanelRows {
  const BFloat16* data;
  int64_t pitch;  // in elements
};

// As many rows as a register has, from row n and term k on, so that it can be loaded: zero beyond
// the last term. What stands in rows beyond the last changes no sum that counts.
inline void gather(const Product<float>& product, int64_t n, int64_t k, BFloat16* to,
                   int64_t pitch) {
  const Operand& left = product.left;
  const int64_t rows = product.N - n < kSide ? product.N - n : kSide, terms = product.K - k;
  const auto* data = element(left.data, As<BFloat16>{}) + n * left.row + k * left.column;
  if (left.column == 1) {
    for (int64_t r = 0; r < rows; ++r, data += left.row, to += pitch) {
      const Halves row = load_terms(data, terms);
      __builtin_memcpy(to, &row, sizeof(row));
    }
  } else if (rows > 0) {
    const auto column = [&](int64_t i) __attribute__((always_inline)) {
      return i < terms ? (Words)load<float>(data + i * left.column, rows) : Words{};
    };
    Floats square[kSide];
    for (int i = 0; i < kSide; ++i) square[i] = (Floats)(column(2 * i) >> 16 | column(2 * i + 1));
    transpose_square<float>(square);
    for (int i = 0; i < kSide; ++i, to += pitch) __builtin_memcpy(to, &square[i], sizeof(Floats));
  }
}

// The sums of one or two registers of rows for a strip of lanes. Between the steps stands other
// work: the vector units are idle, and what a tile has stored is not soon there for them.
template <bool kTwo, class F>
SHIFTMLP_INLINE void multiply_strip(PanelRows rows, const uint32_t* right, int64_t steps,
                                    float* sums, const F& between) {
  constexpr int64_t kRight = kStrip * sizeof(*right), kSums = kLanes<float> * sizeof(*sums);
  const int64_t pitch = rows.pitch * sizeof(*rows.data);
  const BFloat16 *first = rows.data, *second = first + kSide * rows.pitch;
  clear_tile<0>(), clear_tile<1>();
  if constexpr (kTwo) clear_tile<2>(), clear_tile<3>();
  for (int64_t s = 0; s < steps; ++s, right += kSide * kStrip) {
    load_tile<4>(first, pitch);
    load_tile<6>(right, kRight), load_tile<7>(right + kSide, kRight);
    dot_tiles<0, 4, 6>(), dot_tiles<1, 4, 7>();
    if constexpr (kTwo) {
      load_tile<5>(second, pitch);
      dot_tiles<2, 5, 6>(), dot_tiles<3, 5, 7>();
    }
    between(s);
    first += kStepTerms, second += kStepTerms;
  }
  store_tile<0>(sums, kSums), store_tile<1>(sums + kSide, kSums);
  if constexpr (kTwo) {
    sums += kSide * kLanes<float>;
    store_tile<2>(sums, kSums), store_tile<3>(sums + kSide, kSums);
  }
}

// To where rows n ... n + rows of a block go: activation(sums + bias), or what they are added to.
inline void finish_sums(const Product<float>& product, int64_t n, int64_t rows, int64_t block,
                        float* sums) {
  float* const out = product.to ? sums : product.out + (block * product.N + n) * kLanes<float>;
  const auto finish = [&](const auto& activated) __attribute__((always_inline)) {
    for (int64_t r = 0; r < rows; ++r) {
      const float constant = product.bias != nullptr ? product.bias[n + r] : 0;
      for (int64_t i = r * kLanes<float>; i < (r + 1) * kLanes<float>; i += kWidth<float>) {
        const Floats sum = load(sums + i) + constant;
        store(out + i, activated(product.accumulate ? load(out + i) + sum : sum));
      }
    }
  };
  if (product.activation == Activation::kGelu) {
    finish([&](Floats x) __attribute__((always_inline)) { return coarse_gelu(x); });
  } else {
    finish([&](Floats x) __attribute__((always_inline)) { return x; });
    activate_all(product.activation, out, rows * kLanes<float>, out);
  }
  if (product.to != nullptr) put_rows(*product.to, n, rows, block, out);
}

inline void multiply_tiles(const Product<float>& product) {
  const int64_t K = product.K, N = product.N, steps = steps_of(K);
  const Operand& left = product.left;
  const auto* const data = element(left.data, As<BFloat16>{});
  const bool in_place = left.column == 1 && steps * kStepTerms <= K + left.zeros;
  uint32_t* const words = reinterpret_cast<uint32_t*>(product.scratch);
  const int64_t pitch = gathered_pitch(K);
  auto* gathered = reinterpret_cast<BFloat16*>(words + steps * kSide * kLanes<float>);
  auto* next_gathered = gathered + kPanel * pitch;
  alignas(64) float both[2][kPanel * kLanes<float>];
  float *sums = both[0], *last_sums = both[1];
  const Registers registers;
  for (int64_t block = 0; block * kLanes<float> < product.lanes; ++block) {
    pair_strips(product.right + block * K * kLanes<float>, K, words);
    const auto stands = [&](int64_t n) { return in_place && n + kPanel <= N; };
    // Some rows of the panel from n on, unless they can be read as they stand.
    const auto bring = [&](int64_t n, int64_t half, int64_t s) __attribute__((always_inline)) {
      const int64_t k = s * kStepTerms;
      if (n < N && !stands(n)) {
        gather(product, n + half * kSide, k, next_gathered + half * kSide * pitch + k, pitch);
      }
    };
    const auto finish = [&](int64_t n, int64_t begin, int64_t end) __attribute__((always_inline)) {
      if (begin < end) {
        finish_sums(product, n + begin, end - begin, block, last_sums + begin * kLanes<float>);
      }
    };
    for (int64_t s = 0; s < steps; ++s) bring(0, 0, s), bring(0, 1, s);
    int64_t n = 0;
    for (; n < N; n += kPanel) {
      BFloat16* const given = next_gathered;
      next_gathered = gathered, gathered = given;
      const PanelRows rows =
          stands(n) ? PanelRows{data + n * left.row, left.row} : PanelRows{gathered, pitch};
      for (int half = 0; half < 2; ++half) {
        const auto between = [&](int64_t s) __attribute__((always_inline)) {
          bring(n + kPanel, half, s);
          const int64_t turn = half * steps + s;
          const auto before = [&](int64_t turn) { return kPanel * turn / (2 * steps); };
          if (n > 0) finish(n - kPanel, before(turn), before(turn + 1));
        };
        const uint32_t* const right = words + half * kStrip * steps * kSide;
        float* const to = sums + half * kStrip;
        N - n <= kSide ? multiply_strip<false>(rows, right, steps, to, between)
                       : multiply_strip<true>(rows, right, steps, to, between);
      }
      float* const made = sums;
      sums = last_sums, last_sums = made;
    }
    finish(n - kPanel, 0, N - (n - kPanel));
  }
}

}  // namespace
}  // namespace shiftmlp
