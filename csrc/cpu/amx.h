// The product of a bfloat16 or rounded matrix with a tile by AMX, in registers of 16 rows of 16
// words, each word two neighbours of k, as in dot.h.
#pragma once

#include "coarse.h"
#include "dot.h"
#include "passes.h"

namespace shiftmlp {
namespace {

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
SHIFTMLP_INLINE Halves terms_of(const float* from, int64_t count) {
  constexpr int W = kWidth<float>;
  return narrowed(load<float>(from, count),
                  count > W ? load<float>(from + W, count - W) : Floats{});
}

template <int... kHalf>
SHIFTMLP_INLINE Halves unpaired(Halves first, Halves second, bool upper, Indices<kHalf...>) {
  const Halves low = __builtin_shufflevector(first, second, (2 * kHalf)...);
  return upper ? __builtin_shufflevector(first, second, (2 * kHalf + 1)...) : low;
}

// Some lanes of one of a pair's rows, zero behind `count`.
SHIFTMLP_INLINE Halves unpaired(const uint32_t* words, int64_t count, bool upper) {
  constexpr int W = kWidth<float>;
  Halves row =
      unpaired(read<Halves>(words), read<Halves>(words + W), upper, IndicesBelow<2 * W>::type{});
  for (int64_t i = count; i < 2 * W; ++i) row[i] = 0;
  return row;
}

inline int64_t steps_of(int64_t K) { return (K + kStepTerms - 1) / kStepTerms; }

// Rows a power of two apart would have the same places in the cache.
inline int64_t gathered_pitch(int64_t K) { return (steps_of(K) + 1) * kStepTerms; }

inline int64_t strips_of(int64_t lanes) { return (lanes + kStrip - 1) / kStrip; }

// The tile's words and two panels, in 4 bytes an element.
inline int64_t tile_scratch(int64_t K, int64_t lanes) {
  const int64_t blocks = (strips_of(lanes) + 1) / 2;
  return blocks * pairs_of(K, kStepTerms) * kLanes<float> + kPanel * gathered_pitch(K);
}

// Rows of the left operand.
struct PanelRows {
  const BFloat16* data;
  int64_t pitch;  // in elements
};

// As many rows as a register has, from row n and term k on, so that it can be loaded: zero beyond
// the last term. What stands in rows beyond the last changes no sum that counts.
template <class T>
void gather(const Product<float>& product, As<T> as, int64_t n, int64_t k, BFloat16* to,
            int64_t pitch) {
  const Operand& left = product.left;
  const int64_t rows = product.N - n < kSide ? product.N - n : kSide, terms = product.K - k;
  const T* const data = element(left.data, as);
  if (left.paired) {
    const int64_t pair = k / left.block * pairs_of(product.N, kStepTerms) + n / 2;
    const auto* words = element(left.data, As<uint32_t>{}) + pair * left.block + k % left.block;
    for (int64_t r = 0; r < rows; ++r, to += pitch) {
      const Halves row = unpaired(words + r / 2 * left.block, terms, r % 2 == 1);
      __builtin_memcpy(to, &row, sizeof(row));
    }
  } else if (left.column == 1) {
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

// The sums of one or two registers of rows for a strip of lanes, from zero or `from` on. A register
// is loaded for the next step as soon as this one has read it.
template <bool kTwo>
SHIFTMLP_INLINE void multiply_strip(PanelRows rows, const uint32_t* right, int64_t steps,
                                    const float* from, float* sums) {
  constexpr int64_t kRight = kLanes<float> * sizeof(*right), kSums = kLanes<float> * sizeof(*sums);
  const int64_t pitch = rows.pitch * sizeof(*rows.data);
  const BFloat16 *first = rows.data, *second = first + kSide * rows.pitch;
  if (from != nullptr) {
    load_tile<0>(from, kSums), load_tile<1>(from + kSide, kSums), from += kSide * kLanes<float>;
    if constexpr (kTwo) load_tile<2>(from, kSums), load_tile<3>(from + kSide, kSums);
  } else {
    clear_tile<0>(), clear_tile<1>();
    if constexpr (kTwo) clear_tile<2>(), clear_tile<3>();
  }
  if (steps > 0) {
    load_tile<4>(first, pitch), load_tile<6>(right, kRight), load_tile<7>(right + kSide, kRight);
    if constexpr (kTwo) load_tile<5>(second, pitch);
  }
  for (int64_t s = 0; s < steps; ++s) {
    const bool more = s + 1 < steps;
    first += kStepTerms, second += kStepTerms, right += kSide * kLanes<float>;
    dot_tiles<0, 4, 6>(), dot_tiles<1, 4, 7>();
    if (more) load_tile<4>(first, pitch);
    if constexpr (kTwo) dot_tiles<2, 5, 6>();
    if (more) load_tile<6>(right, kRight);
    if constexpr (kTwo) {
      dot_tiles<3, 5, 7>();
      if (more) load_tile<5>(second, pitch);
    }
    if (more) load_tile<7>(right + kSide, kRight);
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
  constexpr int64_t L = kLanes<float>, W = kWidth<float>;
  const bool in_pairs = product.pairing.out, adds = product.accumulate;
  const bool keeps = product.slopes != nullptr, backward = product.backward;
  const float* const bias = product.bias;
  const int64_t place = (block * product.N + n) * L;
  float* const out = product.to ? sums : product.out + place;
  float* const slopes = keeps ? product.slopes + place : nullptr;
  const auto finish = [&](const auto& activated) __attribute__((always_inline)) {
    const auto number = [&](int64_t r, int64_t lane) __attribute__((always_inline)) {
      if (r == rows) return Floats{};
      const int64_t i = r * L + lane;
      const float constant = bias != nullptr ? bias[n + r] : 0;
      const Floats sum = load(sums + i) + constant;
      return activated(adds ? load(out + i) + sum : sum, i);
    };
    if (in_pairs) {
      const Pairs pairs = pairs_at(product, n, block, kStepTerms);
      for (int64_t r = 0; r < rows; r += 2) {
        uint32_t* const to = pairs.data + r / 2 * pairs.pitch;
        for (int64_t i = 0; i < L; i += W) store(to + i, paired(number(r, i), number(r + 1, i)));
      }
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < L; i += W) store(out + r * L + i, number(r, i));
      }
    }
  };
  if (product.to != nullptr && !in_pairs && product.activation == Activation::kNone) {
    return put_rows(*product.to, n, rows, block, sums, product.bias);
  }
  if (product.activation == Activation::kNone) {
    finish([&](Floats x, int64_t) __attribute__((always_inline)) { return x; });
  } else if (product.activation == Activation::kGelu && !backward && (!keeps || product.rounded)) {
    const Table normal(pieces().normal);
    const Table slope_at(pieces().slope);
    const auto gelu = [&](bool with_slopes) __attribute__((always_inline)) {
      finish([&](Floats x, int64_t i) __attribute__((always_inline)) {
        const Place at = place_of(x);
        if (with_slopes) store(slopes + i, coarse_slope(x, at, slope_at));
        return coarse_gelu(x, at, normal);
      });
    };
    keeps ? gelu(true) : gelu(false);
  } else {
    with_activation(product.activation, [&](Activation a) __attribute__((always_inline)) {
      finish([&](Floats x, int64_t i) __attribute__((always_inline)) {
        if (backward) return times_slope<float>(x, load(slopes + i), a);
        if (keeps) store(slopes + i, slope<float>(x, a));
        return activate<float>(x, a);
      });
    });
  }
  if (product.to != nullptr && !in_pairs) put_rows(*product.to, n, rows, block, out);
}

// A panel is gathered, and what became of another one finished, between the strips of a third: what
// a tile has stored is not soon there for the vector units. Work between the steps would be slower.
inline void multiply_tiles(const Product<float>& product) {
  const int64_t K = product.K, N = product.N, steps = steps_of(K);
  const Operand& left = product.left;
  const auto* const data = element(left.data, As<BFloat16>{});
  const bool narrow = left.dtype == DType::kBFloat16;
  const bool in_place = narrow && left.column == 1 && steps * kStepTerms <= K + left.zeros;
  const auto stands = [&](int64_t n) { return in_place && n + kPanel <= N; };
  // Sums that need no more than to be where they belong.
  const bool plain = product.to == nullptr && !product.pairing.out && product.bias == nullptr &&
                     product.activation == Activation::kNone;
  constexpr int64_t L = kLanes<float>;
  const int64_t strips = strips_of(product.lanes), blocks = (strips + 1) / 2;
  const int64_t pairs = steps * kSide, words_of_block = pairs * L;
  uint32_t* const words = reinterpret_cast<uint32_t*>(product.scratch);
  const auto* const tile =
      product.pairing.right ? reinterpret_cast<const uint32_t*>(product.right) : words;
  const int64_t pitch = gathered_pitch(K);
  auto* gathered = reinterpret_cast<BFloat16*>(words + blocks * words_of_block);
  auto* next_gathered = gathered + kPanel * pitch;
  alignas(64) float both[2][kPanel * kLanes<float>] = {};  // as a strip may be left out
  float *sums = both[0], *last_sums = both[1];
  int64_t last_n = 0, last_block = 0, last_rows = 0;  // the sums that wait to be finished
  const Registers registers;
  for (int64_t block = 0; block < blocks && tile == words; ++block) {
    pair_rows(product.right + block * K * L, K, pairs, words + block * words_of_block);
  }
  // The panel from n on, unless it can be read as it stands.
  const auto bring = [&](int64_t n) __attribute__((always_inline)) {
    for (int64_t r = 0; r < kPanel && n + r < N && !stands(n); r += kSide) {
      BFloat16* to = next_gathered + r * pitch;
      for (int64_t k = 0; k < K; k += kStepTerms, to += kStepTerms) {
        narrow ? gather(product, As<BFloat16>{}, n + r, k, to, pitch)
               : gather(product, As<float>{}, n + r, k, to, pitch);
      }
    }
  };
  const auto finish = [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    end = end < last_rows ? end : last_rows;
    if (begin >= end) return;
    float* const from = last_sums + begin * kLanes<float>;
    finish_sums(product, last_n + begin, end - begin, last_block, from);
  };
  bring(0);
  for (int64_t n = 0; n < N; n += kPanel) {
    BFloat16* const given = next_gathered;
    next_gathered = gathered, gathered = given;
    const PanelRows rows =
        stands(n) ? PanelRows{data + n * left.row, left.row} : PanelRows{gathered, pitch};
    for (int64_t strip = 0; strip < strips; ++strip) {
      const bool last = strip % 2 == 1 || strip + 1 == strips;  // of this block
      const uint32_t* const right = tile + strip / 2 * words_of_block + strip % 2 * kStrip;
      const bool direct = plain && n + kPanel <= N;
      float* const to =
          (direct ? product.out + (strip / 2 * N + n) * L : sums) + strip % 2 * kStrip;
      const float* const from = direct && product.accumulate ? to : nullptr;
      N - n <= kSide ? multiply_strip<false>(rows, right, steps, from, to)
                     : multiply_strip<true>(rows, right, steps, from, to);
      if (strip == 0) bring(n + kPanel);
      // Half of what waits beside the first strip of a block, the rest beside the last.
      finish(strip % 2 * kSide, last ? kPanel : kSide);
      if (!last) continue;
      float* const made = sums;
      sums = last_sums, last_sums = made;
      last_n = n, last_block = strip / 2, last_rows = N - n < kPanel ? N - n : kPanel;
      if (direct) last_rows = 0;
    }
  }
  finish(0, last_rows);
  if (!product.pairing.out || product.to != nullptr) return;
  const int64_t filled = (N + 1) / 2, all = pairs_of(N, kStepTerms);
  uint32_t* out = reinterpret_cast<uint32_t*>(product.out);
  for (int64_t block = 0; block < blocks; ++block, out += all * L) {
    __builtin_memset(out + filled * L, 0, (all - filled) * L * sizeof(*out));
  }
}

// sum_lanes of a tile that may be paired.
inline void sum_either(const float* tile, int64_t rows, int64_t lanes, bool paired, float* sums) {
  constexpr int64_t L = kLanes<float>;
  if (!paired) return sum_lanes(tile, rows, lanes, false, sums);
  const int64_t pairs = pairs_of(rows, kStepTerms);
  sum_rows<float>(rows, lanes, sums,
                  [=](int64_t row, int64_t lane, int64_t count) __attribute__((always_inline)) {
                    const float* const at = tile + (lane / L * pairs + row / 2) * L + lane % L;
                    const Words words = (Words)load<float>(at, count);
                    return (Floats)(row % 2 ? words & 0xffff0000 : words << 16);
                  });
}

}  // namespace
}  // namespace shiftmlp
