// token_mlp's hidden units, which are made in registers.
#pragma once

#include "activation.h"
#include "token_tiles_sm90.h"

namespace shiftmlp {

constexpr int kChunk = 64;  // hidden units at a time

__host__ __device__ inline int chunks_of(int D) { return (D + kChunk - 1) / kChunk; }

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
  with_activation(activation, [&](auto constant) {
    activate_chunk<T, decltype(constant)::value>(a, sums, channels, rows);
  });
}

}  // namespace shiftmlp
