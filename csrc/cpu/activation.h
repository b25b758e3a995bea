// The activations and their slopes, on registers.
#pragma once

#include "vector.h"

namespace shiftmlp {
namespace {

template <class F>
SHIFTMLP_INLINE V<double> each(V<double> x, const F& f) {
  for (int i = 0; i < kWidth<double>; ++i) x[i] = f(x[i]);
  return x;
}

SHIFTMLP_INLINE V<double> exp(V<double> x) {
  return each(x, [](double v) { return __builtin_exp(v); });
}
SHIFTMLP_INLINE V<double> erf(V<double> x) {
  return each(x, [](double v) { return __builtin_erf(v); });
}

// Horner's rule, highest power first.
template <class... Coefficients>
SHIFTMLP_INLINE Floats polynomial(Floats x, float highest, Coefficients... lower) {
  Floats sum = Floats{} + highest;
  ((sum = sum * x + lower), ...);
  return sum;
}

// 2^n * e^r with |r| <= log(2) / 2; the relative error of the fit to e^r is 3.1e-9.
SHIFTMLP_INLINE Floats exp(Floats x) {
  const Floats in = clamp(x, 104.0f);                           // where the result is 0 or Inf
  const Floats n = (in * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;  // rounds to an integer
  const Floats r = (in - n * 0.693359375f) + n * 2.12194440e-4f;
  const Floats q =
      polynomial(r, 0.00138146128f, 0.00836871006f, 0.041668389f, 0.166665211f, 0.49999994f);
  // In two factors, as neither 2^128 nor 2^-150 is a number.
  const Words half = (Words)(n * 0.5f + 0x1.8p23f), rest = (Words)(n + 0x1.8p23f) - half;
  const Words bias = Words{} + (127u << 23);
  const Floats first = (Floats)((half << 23) + bias);
  const Floats second = (Floats)((rest << 23) + bias);
  return ((r * r * q + r) + 1.0f) * first * second;
}

template <class Acc>
constexpr Acc kSqrtHalf = 0.70710678118654752440;
template <class Acc>
constexpr Acc kInverseSqrtTwoPi = 0.39894228040143267794;
template <class Acc>
constexpr Acc kSqrtTwoOverPi = 0.79788456080286535588;
template <class Acc>
constexpr Acc kCubic = 0.044715;  // the tanh approximation's

// tanh-GELU is x * sigmoid(t), x / (1 + e^-t); this is -t.
template <class Acc>
SHIFTMLP_INLINE V<Acc> tanh_exponent(V<Acc> x) {
  return -2 * kSqrtTwoOverPi<Acc> * (x + kCubic<Acc> * x * x * x);
}

// The normal distribution function, from its density: Mills' ratio of the two keeps the tails
// exact. P(|x|) / Q(|x|) is the minimax of the relative error, 6.3e-9.
SHIFTMLP_INLINE Floats cumulative(Floats x, Floats density) {
  const Floats t = clamp(x < 0 ? -x : x, 15.0f);
  const Floats p =
      polynomial(t, 0.0104104822f, 0.102473021f, 0.461140028f, 1.10111738f, 1.25331415f);
  const Floats q =
      polynomial(t, 0.0104103705f, 0.102479138f, 0.471406355f, 1.20554468f, 1.67644956f, 1.0f);
  const Floats tail = density * p / q;
  return x < 0 ? tail : 1 - tail;
}
SHIFTMLP_INLINE V<double> cumulative(V<double> x, V<double>) {
  return 0.5 * erf(x * kSqrtHalf<double>) + 0.5;
}

template <class Acc>
SHIFTMLP_INLINE V<Acc> normal_density(V<Acc> x) {
  return kInverseSqrtTwoPi<Acc> * exp(static_cast<Acc>(-0.5) * x * x);
}

template <class Acc>
SHIFTMLP_INLINE V<Acc> activate(V<Acc> x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return x * cumulative(x, normal_density<Acc>(x));
    case Activation::kGeluTanh:
      return x / (1 + exp(tanh_exponent<Acc>(x)));
    case Activation::kRelu:
      return x < 0 ? V<Acc>{} : x;
    default:
      return x;
  }
}

template <class Acc>
SHIFTMLP_INLINE V<Acc> slope(V<Acc> x, Activation activation) {
  const Acc one = 1;
  switch (activation) {
    case Activation::kGelu: {
      const V<Acc> density = normal_density<Acc>(x);
      return cumulative(x, density) + x * density;
    }
    case Activation::kGeluTanh: {
      const V<Acc> t = tanh_exponent<Acc>(x), e = exp(t < 0 ? t : -t);
      const V<Acc> larger = one / (1 + e), smaller = e * larger;  // sigmoid(t) and sigmoid(-t)
      // The sigmoid's slope comes first, so that no square of a large x meets its zero.
      const V<Acc> part = x * (larger * smaller), cubic = 3 * kCubic<Acc> * (part * x * x);
      return (t < 0 ? larger : smaller) + 2 * kSqrtTwoOverPi<Acc> * (part + cubic);
    }
    default:
      return x > 0 ? V<Acc>{} + one : V<Acc>{};
  }
}

// Calls f with the activation as a constant, so that a loop has no branch in it.
template <class F>
SHIFTMLP_INLINE void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kGelu:
      return f(Activation::kGelu);
    case Activation::kGeluTanh:
      return f(Activation::kGeluTanh);
    case Activation::kRelu:
      return f(Activation::kRelu);
    default:
      return;
  }
}

template <class Acc>
void activate_all(Activation activation, const Acc* x, int64_t count, Acc* y) {
  const auto run = [=](Activation a) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; i += kWidth<Acc>) store(y + i, activate<Acc>(load(x + i), a));
  };
  activation == Activation::kNone ? run(Activation::kNone) : with_activation(activation, run);
}

template <class Acc>
void activate_backward(Activation activation, const Acc* x, int64_t count, Acc* dy) {
  with_activation(activation, [=](Activation a) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; i += kWidth<Acc>) {
      const V<Acc> given = load(dy + i), at = load(x + i);
      const bool relu = a == Activation::kRelu;  // where 0 is 0 even if dy is Inf
      store(dy + i, relu ? (at > 0 ? given : V<Acc>{}) : given * slope<Acc>(at, a));
    }
  });
}

}  // namespace
}  // namespace shiftmlp
