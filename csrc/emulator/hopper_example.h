// The smallest kernel that uses all of hopper.h and wgmma.h: for tests, and as an example.
#pragma once

#include <cuda_runtime_api.h>

#include "../dispatch.h"

namespace shiftmlp {

// y[b, t, c] = sum over s of weight[t, s] * x[b, s, c], for T <= 208, everything 16-byte aligned.
struct HopperExampleParams {
  const void* x;       // (B, S, C)
  const void* weight;  // (T, S), S dense
  void* y;             // (B, T, C)
  int64_t B;
  int32_t S, T, C;
  int64_t weight_stride;     // elements
  bool x_through_registers;  // rather than read by wgmma from shared memory
};

void launch_hopper_example(const HopperExampleParams& p, DType dtype, cudaStream_t stream);

}  // namespace shiftmlp
