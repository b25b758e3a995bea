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

// Horner's rule, highest power first.
template <class... Coefficients>
SHIFTMLP_INLINE Floats polynomial(Floats x, float highest, Coefficients... lower) {
  Floats sum = Floats{} + highest;
  ((sum = sum * x + lower), ...);
  return sum;
}

// e^x for -500 < x <= 0, or NaN: 2^n * e^r with |r| <= log(2) / 2; the relative error of the fit to
// e^r is 3.1e-9. It is 0 where 2^n is below the normal numbers.
SHIFTMLP_INLINE Floats decay(Floats x) {
  const float round = 0x1.8p23f + 127;  // to an integer; and to the exponent's bias
  const Floats biased = x * 1.44269504f + round, n = biased - round;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const Floats q =
      polynomial(r, 0.00138146128f, 0.00836871006f, 0.041668389f, 0.166665211f, 0.49999994f);
  const Integers exponent = (Integers)biased - (Integers)(Floats{} + 0x1.8p23f);
  const Integers power = (exponent > 0 ? exponent : Integers{}) << 23;
  return ((r * r * q + r) + 1.0f) * (Floats)power;
}
SHIFTMLP_INLINE V<double> decay(V<double> x) {
  return each(x, [](double v) { return __builtin_exp(v); });
}

template <class Acc>
constexpr Acc kInverseSqrtTwoPi = 0.39894228040143267794;
template <class Acc>
constexpr Acc kSqrtTwoOverPi = 0.79788456080286535588;
template <class Acc>
constexpr Acc kCubic = 0.044715;  // the tanh approximation's

// Both GELUs are x * P(x) with P(x) + P(-x) = 1, and so relu(x) - |x| * P(-|x|). From 15 on
// P(-|x|) is no normal number.
template <class Acc>
SHIFTMLP_INLINE V<Acc> magnitude(V<Acc> x) {
  return at_most(absolute(x), static_cast<Acc>(15));
}

// e^(-t * t / 2), the shape of the normal density.
template <class Acc>
SHIFTMLP_INLINE V<Acc> bell(V<Acc> t) {
  return decay(static_cast<Acc>(-0.5) * t * t);
}

// P(-t) of the normal distribution, from its bell: Mills' ratio keeps the tail exact. The fit's
// relative error is 6.3e-9.
SHIFTMLP_INLINE Floats normal_tail(Floats t, Floats bell) {
  const Floats p = polynomial(t, 0.00415318151f, 0.0408808207f, 0.183968254f, 0.439282279f, 0.5f);
  const Floats q =
      polynomial(t, 0.0104103705f, 0.102479138f, 0.471406355f, 1.20554468f, 1.67644956f, 1.0f);
  return bell * (p / q);  // the division need not wait for the bell
}
SHIFTMLP_INLINE V<double> normal_tail(V<double> t, V<double>) {
  return each(t, [](double v) { return 0.5 * __builtin_erfc(v * 0.70710678118654752440); });
}

// e^(-2u) for the tanh of u.
template <class Acc>
SHIFTMLP_INLINE V<Acc> tanh_decay(V<Acc> t) {
  return decay(-2 * kSqrtTwoOverPi<Acc> * (t + kCubic<Acc> * t * t * t));
}

template <class Acc>
SHIFTMLP_INLINE V<Acc> activate(V<Acc> x, Activation activation) {
  const V<Acc> half = static_cast<Acc>(0.5) * x, t = magnitude<Acc>(x);
  const V<Acc> relu = half + absolute(half);  // NaN at -Inf, as PyTorch has it
  switch (activation) {
    case Activation::kGelu:
      return relu - t * normal_tail(t, bell<Acc>(t));
    case Activation::kGeluTanh: {
      const V<Acc> e = tanh_decay<Acc>(t);
      return relu - t * (e / (1 + e));
    }
    case Activation::kRelu:
      return x < 0 ? V<Acc>{} : x;
    default:
      return x;
  }
}

template <class Acc>
SHIFTMLP_INLINE V<Acc> slope(V<Acc> x, Activation activation) {
  const Acc one = 1;
  const V<Acc> t = magnitude<Acc>(x);
  switch (activation) {
    case Activation::kGelu: {
      const V<Acc> shape = bell<Acc>(t), tail = normal_tail(t, shape);
      return (x < 0 ? tail : 1 - tail) + x * (kInverseSqrtTwoPi<Acc> * shape);
    }
    case Activation::kGeluTanh: {
      const V<Acc> e = tanh_decay<Acc>(t);
      const V<Acc> larger = one / (1 + e), smaller = e * larger;  // P(t) and P(-t)
      // The sigmoid's slope comes first, so that no square of a large x meets its zero.
      const V<Acc> part = x * (larger * smaller), cubic = 3 * kCubic<Acc> * (part * x * x);
      return (x < 0 ? smaller : larger) + 2 * kSqrtTwoOverPi<Acc> * (part + cubic);
    }
    default:
      return x > 0 ? V<Acc>{} + one : V<Acc>{};
  }
}

// Calls f with the activation as a constant, so that a loop has no branch in it; not if it is None.
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

// x becomes activation(x).
template <class Acc>
void activate_all(Activation activation, Acc* x, int64_t count) {
  with_activation(activation, [=](Activation a) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; i += kWidth<Acc>) store(x + i, activate<Acc>(load(x + i), a));
  });
}

// The same, with its slopes.
template <class Acc>
void activate_and_slope(Activation activation, Acc* x, int64_t count, Acc* slopes) {
  with_activation(activation, [=](Activation a) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; i += kWidth<Acc>) {
      const V<Acc> at = load(x + i);
      store(x + i, activate<Acc>(at, a));
      store(slopes + i, slope<Acc>(at, a));
    }
  });
}

// dy * slope
template <class Acc>
SHIFTMLP_INLINE V<Acc> times_slope(V<Acc> dy, V<Acc> slope, Activation activation) {
  if (activation != Activation::kRelu) return dy * slope;
  return slope > 0 ? dy : V<Acc>{};  // 0 is 0 even if dy is Inf
}

template <class Acc>
void activate_backward(Activation activation, const Acc* slopes, int64_t count, Acc* dy) {
  with_activation(activation, [=](Activation a) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; i += kWidth<Acc>) {
      store(dy + i, times_slope<Acc>(load(dy + i), load(slopes + i), a));
    }
  });
}

}  // namespace
}  // namespace shiftmlp
