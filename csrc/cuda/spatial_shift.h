// The bridge between tensors and the CUDA kernels of spatial_shift. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "../dispatch.h"
#include "../image.h"

namespace shiftmlp {

struct SpatialShiftParams {
  const void* x;  // (B, H, W, C), C dense
  void* y;        // (B, H, W, C), contiguous
  int64_t B;
  int32_t H, W, C;
  int32_t item;                          // bytes of an element
  int64_t stride_b, stride_h, stride_w;  // of x, in elements
  Shift shift;                           // already within(H, W)
};

void launch_spatial_shift(const SpatialShiftParams& p, cudaStream_t stream);

// The adjoint of "keep": x is dy, y is dx. Those of "zero" and "wrap" are shifts.
void launch_spatial_shift_keep_backward(const SpatialShiftParams& p, DType dtype,
                                        cudaStream_t stream);

}  // namespace shiftmlp
