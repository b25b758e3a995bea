// The activations with the fewest instructions that a 16-bit result allows.
#pragma once

#include "../activation.h"
#include "primitives.h"

namespace shiftmlp {

// The logistic function of x, given -x / log(2).
__device__ inline float logistic_of_exponent(float exponent) {
  return reciprocal_approx(1.0f + exp2_approx(exponent));
}

template <Activation kActivation>
__device__ float activate(float x) {
  constexpr float kLog2E = 1.44269504f;
  if constexpr (kActivation == Activation::kGelu) {
    // The normal distribution function as a logistic one of an odd polynomial: the minimax fit of
    // x * cdf(x), which is within 3e-6.
    const float u = fminf(x * x, 25.0f);
    float q = -2.20555811e-6f * kLog2E * u + 6.05985092e-5f * kLog2E;
    q = q * u + 2.52644734e-4f * kLog2E;
    q = q * u - 7.29425584e-2f * kLog2E;
    q = q * u - 1.59565433f * kLog2E;
    return x * logistic_of_exponent(x * q);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    constexpr float kTwice = 1.59576912f * kLog2E;  // twice the square root of 2 / pi
    return x * logistic_of_exponent(x * (-0.044715f * kTwice * (x * x) - kTwice));
  } else if constexpr (kActivation == Activation::kRelu) {
    return x < 0 ? 0.0f : x;  // not fmaxf, which drops a NaN
  } else {
    return x;
  }
}

}  // namespace shiftmlp
