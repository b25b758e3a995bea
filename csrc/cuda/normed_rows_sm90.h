// The norm of a product's rows on sm_90a, on their way into the product: from shared memory through
// the registers that wgmma takes them from.
#pragma once

#include "result_sm90.h"

namespace shiftmlp {

constexpr int kTerms = 64;  // of a sum that are brought at a time

// What a norm takes from the rows' columns k to k + kTerms; by a warp.
__device__ inline void load_terms(OfColumn (&terms)[kTerms], const Side& rows, int32_t k) {
#pragma unroll
  for (int i = threadIdx.x % 32; i < kTerms; i += 32) {
    terms[i] = {};
    if (k + i >= rows.columns) continue;
    terms[i] = {read(rows.operand.bias, k + i), read(rows.operand.weight, k + i, 1.0f)};
  }
}

// What a norm takes from a lane's rows of its warp's 16: g and g + 8.
struct RowMoments {
  float mean[2], rstd[2];

  __device__ RowMoments(const Operand& o, int32_t row, int32_t rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t r = row + threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
      mean[half] = 0.0f, rstd[half] = 1.0f;
      if (o.mean && r < rows) mean[half] = o.mean[r], rstd[half] = o.rstd[r];
    }
  }
};

// A warp's 16 of a warpgroup's 64 rows and 16 terms from k on, normed, as the left operand.
template <class T>
__device__ void load_normed(uint32_t (&a)[4], Line<T>* rows, int k, const RowMoments& moments,
                            const OfColumn (&terms)[kTerms]) {
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  ldmatrix<false>(a, swizzled(rows, warp * 16 + lane % 16, k + lane / 16 * 8));
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const OfColumn* const of = &terms[k + n / 2 * 8 + lane % 4 * 2];
    float pair[2];
    unpack<T>(a[n], pair);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float z = (pair[j] - moments.mean[n % 2]) * moments.rstd[n % 2];
      pair[j] = z * of[j].scale + of[j].bias;
    }
    a[n] = pack<T>(pair[0], pair[1]);
  }
}

}  // namespace shiftmlp
