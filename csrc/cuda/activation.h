// The activations and their slopes, on a thread's registers, with the fewest instructions that a
// result in 16 bits, or of products in TF32, allows.
#pragma once

#include <cmath>
#include <type_traits>

#include "../activation.h"
#include "primitives.h"

namespace shiftmlp {

constexpr float kLog2E = 1.44269504f;

// The logistic function of x, given -x / log(2).
__device__ inline float logistic_of_exponent(float exponent) {
  return reciprocal_approx(1.0f + exp2_approx(exponent));
}

// The normal distribution function as a logistic one of an odd polynomial: the minimax fit of
// x * cdf(x), which is within 3e-6. Rounding to 16 bits or TF32 is coarser by far.
__device__ inline float normal_cdf(float x) {
  const float u = x * x;
  float q = -2.20555811e-6f * kLog2E * u + 6.05985092e-5f * kLog2E;
  q = q * u + 2.52644734e-4f * kLog2E;
  q = q * u - 7.29425584e-2f * kLog2E;
  q = q * u - 1.59565433f * kLog2E;
  return logistic_of_exponent(x * q);
}

// The exponent of tanh-GELU's logistic function.
__device__ inline float tanh_exponent(float x) {
  constexpr float kTwice = 1.59576912f * kLog2E;  // twice the square root of 2 / pi
  return x * (-0.044715f * kTwice * (x * x) - kTwice);
}

template <Activation kActivation>
__device__ float activate(float x) {
  switch (kActivation) {
    case Activation::kGelu:
      return x * normal_cdf(x);
    case Activation::kGeluTanh:
      return x * logistic_of_exponent(tanh_exponent(x));
    case Activation::kRelu:
      return x < 0 ? 0.0f : x;  // not fmaxf, which drops a NaN
    default:
      return x;
  }
}

// dy times the slope at x.
template <Activation kActivation>
__device__ float activate_backward(float dy, float x) {
  switch (kActivation) {
    case Activation::kGelu:
      return dy * (normal_cdf(x) + x * (0.398942280f * exp2_approx(-0.5f * kLog2E * (x * x))));
    case Activation::kGeluTanh: {
      const float e = exp2_approx(-fabsf(tanh_exponent(x)));
      const float larger = reciprocal_approx(1.0f + e), smaller = e * larger;  // of |x| and -|x|
      // The logistic's slope comes first, so that no square of a large x meets its zero.
      const float part = x * (larger * smaller), cubic = 3 * 0.044715f * (part * x * x);
      return dy * ((x < 0 ? smaller : larger) + 1.59576912f * (part + cubic));
    }
    case Activation::kRelu:
      return x > 0 ? dy : 0.0f;  // 0 even if dy is Inf
    default:
      return dy;
  }
}

// Calls f with the activation as a constant, so that a loop has no branch in it.
template <class F>
__device__ void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>{});
    default:
      return f(std::integral_constant<Activation, Activation::kNone>{});
  }
}

}  // namespace shiftmlp
