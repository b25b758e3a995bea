// The bridge between tensors and the kernel of token_linear for sm_90a. No torch.
#pragma once

#include "product.h"

namespace shiftmlp {

// y = residual + scale[c] * (bias[t] + sum over s of weight[t, s] * norm(x)[b, s, c]); the norm is
// (x - mean) * rstd * weight[c] + bias[c], each part as far as it is given.
struct TokenLinearSm90Params {
  DType dtype;                    // float16 or bfloat16, of x, weight, residual and y
  Rows x;                         // (B, S, C)
  const void* weight;             // (T, S), S dense
  int64_t weight_stride;          // elements
  Vector bias;                    // (T)
  const float *mean, *rstd;       // (B, S), or null
  Vector norm_weight, norm_bias;  // (C)
  Vector scale;                   // (C)
  Rows residual;                  // (B, T, C)
  void* y;                        // (B, T, C), contiguous
  int64_t B;
  int32_t S, T, C;
};

// Whether the current device and these tensors allow it. The rest is the portable path's.
bool fits_sm90(const TokenLinearSm90Params& p);

// Sums are in float32 and rounded once; the normalised x is rounded before them.
void launch_token_linear_sm90(const TokenLinearSm90Params& p, cudaStream_t stream);

}  // namespace shiftmlp
