// The bridge between tensors and the kernels of token_linear and token_mlp for sm_90a. No torch.
#pragma once

#include "product.h"

namespace shiftmlp {

// What they have in common: y = residual + scale[c] * f(norm(x)), where f mixes the S tokens of an
// image into T, and norm(x) = (x - mean) * rstd * norm_weight[c] + norm_bias[c], each part as far
// as it is given.
struct TokensSm90 {
  DType dtype;                    // float16 or bfloat16, of x, weights, residual and y
  Rows x;                         // (B, S, C)
  const float *mean, *rstd;       // (B, S), or null
  Vector norm_weight, norm_bias;  // (C)
  Vector scale;                   // (C)
  Rows residual;                  // (B, T, C)
  void* y;                        // (B, T, C), contiguous
  int64_t B;
  int32_t S, T, C;
};

// f(x) = weight x + bias
struct TokenLinearSm90Params : TokensSm90 {
  const void* weight;     // (T, S), S dense
  int64_t weight_stride;  // elements
  Vector bias;            // (T)
};

// f(x) = w2 activation(w1 x + b1) + b2
struct TokenMlpSm90Params : TokensSm90 {
  const void* w1;  // (D, S), S dense
  int64_t w1_stride;
  Vector b1;       // (D)
  const void* w2;  // (T, D), D dense
  int64_t w2_stride;
  Vector b2;  // (T)
  Activation activation;
  int32_t D;
  void* workspace;  // workspace_bytes(p), 16-byte aligned
};
int64_t workspace_bytes(const TokenMlpSm90Params& p);

// Packs w1, and what belongs to its rows, into the workspace.
void launch_pack_w1(const TokenMlpSm90Params& p, cudaStream_t stream);

// The gradients of what the same compute, whose y and residual are not looked at.
struct TokenMlpBackwardSm90Params : TokenMlpSm90Params {
  Rows dy;                 // (B, T, C)
  Rows normed;             // (B, S, C): norm(x)
  void *hidden, *dhidden;  // (B, D, C), contiguous: what w2 multiplies; the gradient before it
  void* dx;                // (B, S, C), contiguous
  // Parts that are to be summed over their rows, or null.
  float *dnorm_weight, *dnorm_bias;  // (B, C)
  float* db1;                        // (B * parts_of_b1(C), D)
};
__host__ __device__ inline int32_t parts_of_b1(int32_t C) { return (C + 63) / 64 * 4; }

// Whether the current device and these tensors allow it. The rest is the portable path's.
bool fits_sm90(const TokenLinearSm90Params& p);
bool fits_sm90(const TokenMlpSm90Params& p);
bool fits_sm90(const TokenMlpBackwardSm90Params& p);

// Sums are in float32. Rounded are the normalised x, the hidden activations, and y.
void launch_token_linear_sm90(const TokenLinearSm90Params& p, cudaStream_t stream);
void launch_token_mlp_sm90(const TokenMlpSm90Params& p, cudaStream_t stream);

// Rounded are the hidden, its gradient, and dx.
void launch_token_mlp_backward_sm90(const TokenMlpBackwardSm90Params& p, cudaStream_t stream);

}  // namespace shiftmlp
