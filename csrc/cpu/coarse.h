// GELU and its slope where what is made of them will be rounded to bfloat16.
#pragma once

#include "activation.h"

namespace shiftmlp {
namespace {

// Lanes of low and high by the lowest bits of their index.
SHIFTMLP_INLINE Floats picked(Floats low, Floats high, Words index) {
#ifdef SHIFTMLP_PICK
  return (Floats)SHIFTMLP_PICK(low, index, high);
#else
  constexpr int W = kWidth<float>;
  Floats v;
  for (int i = 0; i < W; ++i) v[i] = index[i] & W ? high[index[i] % W] : low[index[i] % W];
  return v;
#endif
}

// x, but no farther from 0 than the limit.
SHIFTMLP_INLINE Floats within_magnitude(Floats x, float limit) {
#ifdef SHIFTMLP_MIN_MAGNITUDE
  return (Floats)SHIFTMLP_MIN_MAGNITUDE(x, Floats{} + limit);
#else
  return (Floats)((Words)at_most(absolute(x), limit) | ((Words)x & 0x80000000));
#endif
}

// The normal distribution function and GELU's slope in pieces as wide as kPiece, each a polynomial
// through some of their values. There are as many as two registers hold: from -15 to 15, in the
// order of k mod 32.
constexpr float kPiece = 0.3f;

struct Pieces {
  static constexpr int kCount = 2 * kWidth<float>;
  alignas(64) float normal[3][kCount] = {}, slope[4][kCount] = {};

  Pieces() {
    const auto value = [](double x) { return 0.5 * __builtin_erfc(x * -0.70710678118654752440); };
    const auto density = [](double x) {
      return 0.39894228040143267794 * __builtin_exp(-x * x / 2);
    };
    fill(normal, value);
    fill(slope, [&](double x) { return value(x) + x * density(x); });
  }

 private:
  // In every piece the polynomial through its function's values at Chebyshev's nodes.
  template <int kTerms, class F>
  static void fill(float (&coefficients)[kTerms][kCount], const F& f) {
    for (int k = -15; k <= 15; ++k) {
      double at[kTerms], divided[kTerms], polynomial[kTerms] = {};
      for (int i = 0; i < kTerms; ++i) {
        const double node = __builtin_cos(3.14159265358979323846 * (i + 0.5) / kTerms);
        at[i] = (k + node / 2) * double{kPiece}, divided[i] = f(at[i]);
      }
      for (int d = 1; d < kTerms; ++d) {
        for (int i = kTerms; --i >= d;) {
          divided[i] = (divided[i] - divided[i - 1]) / (at[i] - at[i - d]);
        }
      }
      for (int d = kTerms; --d >= 0;) {
        for (int i = kTerms; --i > 0;) polynomial[i] = polynomial[i - 1] - at[d] * polynomial[i];
        polynomial[0] = divided[d] - at[d] * polynomial[0];
      }
      const bool last = k == -15 || k == 15;  // what all beyond belongs to
      for (int i = 0; i < kTerms; ++i) {
        coefficients[i][k & (kCount - 1)] =
            static_cast<float>(last ? i == 0 && k == 15 : polynomial[i]);
      }
    }
  }
};

// Made when it is first asked for: at load, the processor may have no such registers.
inline const Pieces& pieces() {
  static const Pieces made;
  return made;
}

// x, not far from 0, and the place of its piece.
struct Place {
  Floats t;
  Words k;
};
SHIFTMLP_INLINE Place place_of(Floats x) {
  const Floats t = within_magnitude(x, 15 * kPiece);
  return {t, (Words)(t * (1 / kPiece) + 0x1.8p23f)};
}

// A function's coefficients in registers.
template <int kTerms>
struct Table {
  Floats low[kTerms], high[kTerms];

  SHIFTMLP_INLINE explicit Table(const float (&coefficients)[kTerms][Pieces::kCount]) {
    for (int i = 0; i < kTerms; ++i) {
      low[i] = load(coefficients[i]), high[i] = load(coefficients[i] + kWidth<float>);
    }
  }
  SHIFTMLP_INLINE Floats operator()(Place at) const {
    Floats sum = picked(low[kTerms - 1], high[kTerms - 1], at.k);
    for (int i = kTerms - 1; --i >= 0;) sum = sum * at.t + picked(low[i], high[i], at.k);
    return sum;
  }
};

// x times that function. It errs by 4.8e-5 at most, as much as the rounding of results from 0.025
// on; below -4.35 it is 0.
SHIFTMLP_INLINE Floats coarse_gelu(Floats x, Place at, const Table<3>& normal) {
  return x * normal(at);
}

// Its slope. It errs by 1.3e-4 at most.
SHIFTMLP_INLINE Floats coarse_slope(Floats x, Place at, const Table<4>& slope) {
  return slope(at) + 0 * x;  // NaN at Inf, as PyTorch has it
}

}  // namespace
}  // namespace shiftmlp
