// The library of native CUDA kernels. The public ops are those of torch.ops.shiftmlp.
#include <cuda_runtime_api.h>

#include "../schemas.h"

STABLE_TORCH_LIBRARY(shiftmlp_cuda, m) { define_kernels(m); }

// What the library was built with and for. Readable without torch, before anything is launched.
extern "C" {
__attribute__((visibility("default"))) const char* shiftmlp_cuda_archs() {
  return SHIFTMLP_CUDA_ARCHS;  // as in TORCH_CUDA_ARCH_LIST
}
__attribute__((visibility("default"))) int shiftmlp_cuda_version() { return CUDART_VERSION; }
}
