// The product of a bfloat16 or rounded matrix with a tile by AMX, in registers of 16 rows of 16
// words, each word two neighbours of k, as in dot.h.
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

// Its slope, likewise: for P(-t) minus t times the normal density, which errs by 9.8e-5.
SHIFTMLP_INLINE Floats coarse_slope(Floats x) {
  const float end = 5;
  const Floats t = at_most(absolute(x), end);
  const Floats p = polynomial(t, -1.75084383e-05f, 0.000423008809f, -0.00417219382f, 0.0211709142f,
                              -0.055716835f, 0.0593412630f, 0.0177913252f, -0.0190977100f,
                              -0.140568912f, 0.100018129f);
  const Floats below = (end - t) * p;
  return (x < 0 ? below : 1 - below) + (x - x);  // NaN at Inf, as PyTorch has it
}

inline void coarse_activate(Activation activation, float* x, int64_t count, float* y,
                            bool rounded) {
  if (!rounded || activation != Activation::kGelu) {
    return activate_and_slope(activation, x, count, y, rounded);
  }
  for (int64_t i = 0; i < count; i += kWidth<float>) {
    const Floats at = load(x + i);
    store(y + i, coarse_gelu(at));
    store(x + i, coarse_slope(at));
  }
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
// A step's terms of a row, zero beyond the last.
inline Halves terms_of(const BFloat16* from, int64_t count) {
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
SHIFTMLP_INLINE Halves terms_of(const BFloat16* from, int64_t count) {
  if (count >= kStepTerms) return read<Halves>(from);
  return (Halves)_mm512_maskz_loadu_epi16((1u << count) - 1, from);
}
#endif

inline int64_t steps_of(int64_t K) { return (K + kStepTerms - 1) / kStepTerms; }

// Rows a power of two apart would have the same places in the cache.
inline int64_t gathered_pitch(int64_t K) { return (steps_of(K) + 1) * kStepTerms; }

inline int64_t strips_of(int64_t lanes) { return (lanes + kStrip - 1) / kStrip; }

// The tile's words and two panels, in 4 bytes an element.
inline int64_t tile_scratch(int64_t K, int64_t lanes) {
  return strips_of(lanes) * steps_of(K) * kSide * kStrip + kPanel * gathered_pitch(K);
}

// A strip of a block as words, zero beyond the last term.
inline void pair_strip(const float* right, int64_t K, uint32_t* words) {
  for (int64_t k = 0; k < steps_of(K) * kStepTerms; k += 2, right += 2 * kLanes<float>) {
    for (int c = 0; c < kStrip; c += kWidth<float>, words += kWidth<float>) {
      const Floats low = k < K ? load(right + c) : Floats{};
      const Floats high = k + 1 < K ? load(right + kLanes<float> + c) : Floats{};
      store(words, paired(low, high));
    }
  }
}

// Rows of the left operand.
struct PanelRows {
  const BFloat16* data;
  int64_t pitch;  // in elements
};

SHIFTMLP_INLINE Halves terms_of(const float* from, int64_t count) {
  constexpr int W = kWidth<float>;
  return narrowed(load<float>(from, count),
                  count > W ? load<float>(from + W, count - W) : Floats{});
}

// As many rows as a register has, from row n and term k on, so that it can be loaded: zero beyond
// the last term. What stands in rows beyond the last changes no sum that counts.
template <class T>
void gather(const Product<float>& product, As<T> as, int64_t n, int64_t k, BFloat16* to,
            int64_t pitch) {
  const Operand& left = product.left;
  const int64_t rows = product.N - n < kSide ? product.N - n : kSide, terms = product.K - k;
  const T* const data = element(left.data, as);
  if (left.column == 1) {
    const T* from = data + n * left.row + k % left.block + k / left.block * left.block * product.N;
    for (int64_t r = 0; r < rows; ++r, from += left.row, to += pitch) {
      const Halves row = terms_of(from, terms);
      __builtin_memcpy(to, &row, sizeof(row));
    }
  } else if (rows > 0) {
    const T* const from = data + n * left.row + k * left.column;
    const auto column = [&](int64_t i) __attribute__((always_inline)) {
      return i < terms ? load<float>(from + i * left.column, rows) : Floats{};
    };
    Floats square[kSide];
    for (int i = 0; i < kSide; ++i) square[i] = (Floats)paired(column(2 * i), column(2 * i + 1));
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

// While a panel is multiplied, what the one before has become is finished, and the one behind it is
// gathered.
inline void multiply_tiles(const Product<float>& product) {
  const int64_t K = product.K, N = product.N, steps = steps_of(K);
  const Operand& left = product.left;
  const auto* const data = element(left.data, As<BFloat16>{});
  const bool narrow = left.dtype == DType::kBFloat16;
  const bool in_place = narrow && left.column == 1 && steps * kStepTerms <= K + left.zeros;
  const auto stands = [&](int64_t n) { return in_place && n + kPanel <= N; };
  uint32_t* const words = reinterpret_cast<uint32_t*>(product.scratch);
  const int64_t strips = strips_of(product.lanes), words_of_strip = steps * kSide * kStrip;
  const int64_t pitch = gathered_pitch(K);
  auto* gathered = reinterpret_cast<BFloat16*>(words + strips * words_of_strip);
  auto* next_gathered = gathered + kPanel * pitch;
  alignas(64) float both[2][kPanel * kLanes<float>] = {};  // as a strip may be left out
  float *sums = both[0], *last_sums = both[1];
  int64_t last_n = 0, last_block = 0, last_rows = 0;  // the sums that wait to be finished
  const Registers registers;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t first = strip / 2 * K * kLanes<float> + strip % 2 * kStrip;
    pair_strip(product.right + first, K, words + strip * words_of_strip);
  }
  // A step of the panel from n on, unless it can be read as it stands.
  const auto bring = [&](int64_t n, int64_t s) __attribute__((always_inline)) {
    const int64_t k = s * kStepTerms;
    for (int64_t r = 0; r < kPanel && n + r < N && !stands(n); r += kSide) {
      BFloat16* const to = next_gathered + r * pitch + k;
      narrow ? gather(product, As<BFloat16>{}, n + r, k, to, pitch)
             : gather(product, As<float>{}, n + r, k, to, pitch);
    }
  };
  const auto finish = [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    end = end < last_rows ? end : last_rows;
    if (begin >= end) return;
    float* const from = last_sums + begin * kLanes<float>;
    finish_sums(product, last_n + begin, end - begin, last_block, from);
  };
  for (int64_t s = 0; s < steps; ++s) bring(0, s);
  for (int64_t n = 0; n < N; n += kPanel) {
    BFloat16* const given = next_gathered;
    next_gathered = gathered, gathered = given;
    const PanelRows rows =
        stands(n) ? PanelRows{data + n * left.row, left.row} : PanelRows{gathered, pitch};
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t together = strips - strip / 2 * 2 < 2 ? 1 : 2;  // in this block
      const auto between = [&](int64_t s) __attribute__((always_inline)) {
        if (strip == 0) bring(n + kPanel, s);
        const int64_t turn = strip % 2 * steps + s, turns = together * steps;
        finish(kPanel * turn / turns, kPanel * (turn + 1) / turns);
      };
      const uint32_t* const right = words + strip * words_of_strip;
      float* const to = sums + strip % 2 * kStrip;
      N - n <= kSide ? multiply_strip<false>(rows, right, steps, to, between)
                     : multiply_strip<true>(rows, right, steps, to, between);
      if (strip % 2 + 1 < together) continue;
      if (steps == 0) finish(0, kPanel);
      float* const made = sums;
      sums = last_sums, last_sums = made;
      last_n = n, last_block = strip / 2, last_rows = N - n < kPanel ? N - n : kPanel;
    }
  }
  finish(0, last_rows);
}

}  // namespace
}  // namespace shiftmlp
