// The one place that takes a device and a stream: every kernel is launched through on_stream_of.
#pragma once

#include <cuda_runtime_api.h>

#ifdef USE_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

// A CPU-only torch lacks these three. Weak, they let the library load there too, so that its
// schemas can be tested; nothing calls them without a CUDA tensor.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
__attribute__((weak)) AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*,
                                                              uint32_t, bool, char**);
__attribute__((weak)) void torch_c10_cuda_free_error_msg(char*);
}

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace shiftmlp {

// Calls launch(stream) on x's device and its current stream, and raises if the launch failed. In
// the emulator, which takes tensors in the CPU's memory, there is neither, and `launch` raises.
template <class Launch>
void on_stream_of([[maybe_unused]] const torch::stable::Tensor& x, const Launch& launch) {
#ifdef USE_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  launch(static_cast<cudaStream_t>(stream));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
#else
  launch(cudaStream_t{});
#endif
}

}  // namespace shiftmlp

// The adapters of a file: SHIFTMLP_ADAPTERS(m) { m.impl("op", TORCH_BOX(&op)); }
#ifdef USE_CUDA
#define SHIFTMLP_ADAPTERS(m) STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cuda, CUDA, m)
#else
#define SHIFTMLP_ADAPTERS(m) STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cuda, CPU, m)
#endif
