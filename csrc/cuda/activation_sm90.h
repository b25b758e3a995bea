// The activations with the fewest instructions that a 16-bit result allows, and token_mlp's hidden
// units, which they make in registers.
#pragma once

#include "../activation.h"
#include "token_tiles_sm90.h"

namespace shiftmlp {

constexpr int kChunk = 64;  // hidden units at a time

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

// The activated hidden units of a chunk as the left operand of the second product.
template <class T, Activation kActivation>
__device__ void activate_chunk(uint32_t (&a)[kChunk / 16][4], const float (&sums)[kChunk / 2],
                               const OfChannel (&channels)[2], const OfRow* rows) {
  const int q = threadIdx.x % 4 * 2;
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const OfRow* const row = &rows[16 * k + n / 2 * 8 + q];
      const float first = channels[n % 2](sums[8 * k + 2 * n], row[0]);
      const float second = channels[n % 2](sums[8 * k + 2 * n + 1], row[1]);
      a[k][n] = pack<T>(activate<kActivation>(first), activate<kActivation>(second));
    }
  }
}

template <class T>
__device__ void activate_chunk(uint32_t (&a)[kChunk / 16][4], const float (&sums)[kChunk / 2],
                               const OfChannel (&channels)[2], const OfRow* rows,
                               Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return activate_chunk<T, Activation::kGelu>(a, sums, channels, rows);
    case Activation::kGeluTanh:
      return activate_chunk<T, Activation::kGeluTanh>(a, sums, channels, rows);
    case Activation::kRelu:
      return activate_chunk<T, Activation::kRelu>(a, sums, channels, rows);
    default:
      return activate_chunk<T, Activation::kNone>(a, sums, channels, rows);
  }
}

}  // namespace shiftmlp
