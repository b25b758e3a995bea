// The bridge between tensors and the CUDA kernels of token_linear. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "../dispatch.h"

namespace shiftmlp {

// y[b, t, c] = residual[b, t, c] + scale[c] * (bias[t] + sum over s of weight[t, s] * x[b, s, c])
struct TokenLinearParams {
  const void* x;         // (B, S, C), C dense
  const void* weight;    // (T, S), S dense
  const void* bias;      // (T), or null
  const void* scale;     // (C), or null
  const void* residual;  // (B, T, C), C dense, or null
  void* y;               // (B, T, C), contiguous
  int64_t B;
  int32_t S, T, C;
  int64_t x_stride_b, x_stride_s;  // all strides in elements
  int64_t weight_stride;
  int64_t residual_stride_b, residual_stride_t;
};

// All tensors are of dtype, float16 or bfloat16; sums are in float32 and rounded once.
void launch_token_linear(const TokenLinearParams& p, DType dtype, cudaStream_t stream);

}  // namespace shiftmlp
