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

// The normal distribution function in pieces as wide as kPiece, each a quadratic through three of
// its values. There are as many as two registers hold: from -15 to 15, in the order of k mod 32.
constexpr float kPiece = 0.3f;

struct Pieces {
  alignas(64) float coefficients[3][2 * kWidth<float>] = {};

  Pieces() {
    const auto value = [](double x) { return 0.5 * __builtin_erfc(x * -0.70710678118654752440); };
    for (int k = -15; k <= 15; ++k) {
      const double x = k * double{kPiece}, step = 0.43301270189221932338 * kPiece;
      const double y = value(x), before = y - value(x - step), after = value(x + step) - y;
      const double c = (after - before) / (2 * step * step);
      const double b = (after + before) / (2 * step) - 2 * c * x, a = y - (b + c * x) * x;
      const bool last = k == -15 || k == 15;  // what all beyond belongs to
      const float of_piece[] = {static_cast<float>(last ? k == 15 : a),
                                static_cast<float>(last ? 0 : b), static_cast<float>(last ? 0 : c)};
      for (int i = 0; i < 3; ++i) coefficients[i][k & 31] = of_piece[i];
    }
  }
};

// Made when it is first asked for: at load, the processor may have no such registers.
inline const Pieces& pieces() {
  static const Pieces made;
  return made;
}

// x times that function. It errs by 4.8e-5 at most, as much as the rounding of results from 0.025
// on; below -4.35 it is 0.
SHIFTMLP_INLINE Floats coarse_gelu(Floats x, const Pieces& pieces) {
  const Floats t = within_magnitude(x, 15 * kPiece);
  const Words k = (Words)(t * (1 / kPiece) + 0x1.8p23f);
  const auto coefficient = [&](int i) __attribute__((always_inline)) {
    const float* const from = pieces.coefficients[i];
    return picked(load(from), load(from + kWidth<float>), k);
  };
  return x * ((coefficient(2) * t + coefficient(1)) * t + coefficient(0));
}

// Its slope, by a polynomial for P(-t) minus t times the normal density, which errs by 9.8e-5.
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
  const Pieces& made = pieces();
  for (int64_t i = 0; i < count; i += kWidth<float>) {
    const Floats at = load(x + i);
    store(y + i, coarse_gelu(at, made));
    store(x + i, coarse_slope(at));
  }
}

}  // namespace
}  // namespace shiftmlp
