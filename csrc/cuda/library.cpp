// Every native CUDA kernel, a line each. The public ops are those of torch.ops.shiftmlp.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(shiftmlp_cuda, m) {
  m.def("spatial_shift(Tensor x, str shift) -> Tensor");
  m.def("spatial_shift_backward(Tensor dy, str shift) -> Tensor");
}

// What the library was built with and for. Readable without torch, before anything is launched.
extern "C" {
__attribute__((visibility("default"))) const char* shiftmlp_cuda_archs() {
  return SHIFTMLP_CUDA_ARCHS;  // as in TORCH_CUDA_ARCH_LIST
}
__attribute__((visibility("default"))) int shiftmlp_cuda_version() { return CUDART_VERSION; }
}
