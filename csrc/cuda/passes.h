// What the ops of the portable path do apart from products, each in one pass over memory. No torch.
// Sums are in float32 and in a fixed order: no atomics.
#pragma once

#include <optional>

#include "product.h"

namespace shiftmlp {

// A tensor (images, rows, columns) as a pass reads it, of fewer than 2^31 rows in all.
struct Images {
  Rows rows;
  DType dtype;  // float16, bfloat16 or float32
  int64_t images;
  int32_t count, columns;  // count: rows of an image
};

// The norm over the columns of every row: (x - mean) * rstd * weight + bias. Without mean: affine.
struct NormParams {
  float *mean, *rstd;   // (images, rows)
  Vector weight, bias;  // (columns)
};

// y = residual + scale * norm(x), contiguous, in `dtype`; without y, nothing. With eps, what mean
// and rstd point to is made first: mean and 1 / sqrt(variance + eps) of every row, in two passes
// over a row that is read once.
void launch_norm(const Images& x, const NormParams& norm, Vector scale, const Images& residual,
                 void* y, DType dtype, cudaStream_t stream, std::optional<float> eps = {});

inline void launch_moments(const Images& x, float eps, float* mean, float* rstd,
                           cudaStream_t stream) {
  launch_norm(x, {mean, rstd, {}, {}}, {}, {}, nullptr, x.dtype, stream, eps);
}

// The moments, and the norm by them.
inline void launch_layer_norm(const Images& x, float eps, float* mean, float* rstd, Vector weight,
                              Vector bias, void* y, DType dtype, cudaStream_t stream) {
  launch_norm(x, {mean, rstd, weight, bias}, {}, {}, y, dtype, stream, eps);
}

// The adjoint of the norm, of whose result dy * scale is the gradient: dx, contiguous, in `dtype`;
// and, as parts of which launch_sum_parts makes gradients, (parts, columns) each: of weight and
// bias, and of the scale of the norm's result. Null: not wanted.
struct NormBackward {
  Images dy, x;
  NormParams norm;
  Vector scale;
  void* dx;
  DType dtype;
  float *dweight, *dbias, *dscale;
  int32_t parts;
};
void launch_norm_backward(const NormBackward& p, cudaStream_t stream);

// dx = dy * scale * activation'(x), contiguous, in `dtype`. It may take the place of dy.
void launch_activation_backward(const Images& dy, Vector scale, const Images& x,
                                Activation activation, void* dx, DType dtype, cudaStream_t stream);

// (parts, columns): sums over the rows of all images of a, or of a * b where b has data.
void launch_sum_rows(const Images& a, const Images& b, float* sums, int32_t parts,
                     cudaStream_t stream);

// (parts, rows): sums over the columns of a * scale, or a * scale * b, and over the images. Parts
// are fewer than 2^16.
void launch_sum_columns(const Images& a, Vector scale, const Images& b, float* sums, int32_t parts,
                        cudaStream_t stream);

// sums[i] = sum over the parts of parts[., i]; in `dtype`.
void launch_sum_parts(const float* parts, int32_t count, int64_t n, void* sums, DType dtype,
                      cudaStream_t stream);

}  // namespace shiftmlp
