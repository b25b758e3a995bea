// What a kernel needs of the language that a C++ compiler does not have: with it, the same source
// runs on a GPU and in the emulator. Kernels write neither <<<>>> nor extern __shared__ nor asm.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#ifndef __CUDACC__
#include "../emulator/primitives.h"
#endif

namespace shiftmlp {

#ifdef __CUDACC__
// The line that calls a primitive, which only the emulator asks for.
struct Here {
  static constexpr __host__ __device__ Here current() { return {}; }
};
#else
using emulator::Here;
#endif

constexpr size_t kSharedByDefault = 48 << 10;  // more must be asked for

#ifdef __CUDACC__
template <class... Params>
cudaLaunchConfig_t launch_config(void (*kernel)(Params...), int cluster, dim3 grid, dim3 block,
                                 size_t shared_bytes, cudaLaunchAttribute& size) {
  if (shared_bytes > kSharedByDefault) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
  config.attrs = &size, config.numAttrs = cluster > 1;
  return config;
}
#endif

// Starts kernel(args...) with so many bytes of dynamic shared memory for a block; so many
// neighbouring blocks of a row of the grid, which is made of whole ones, are a cluster.
template <class... Params, class... Args>
void launch_clusters(void (*kernel)(Params...), int cluster, dim3 grid, dim3 block,
                     size_t shared_bytes, [[maybe_unused]] cudaStream_t stream,
                     const Args&... args) {
#ifdef __CUDACC__
  cudaLaunchAttribute size{};
  auto config = launch_config(kernel, cluster, grid, block, shared_bytes, size);
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, args...);
#else
  const auto call = [&] { kernel(args...); };
  emulator::run(
      cluster, grid, block, shared_bytes,
      [](const void* call_it) { (*static_cast<decltype(&call)>(call_it))(); }, &call);
#endif
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  launch_clusters(kernel, 1, grid, block, shared_bytes, stream, args...);
}

// The block's dynamic shared memory.
template <class T>
__device__ inline T& shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) unsigned char bytes[];
  return *reinterpret_cast<T*>(bytes);
#else
  return *reinterpret_cast<T*>(emulator::shared_memory());
#endif
}

// The compiler takes the words for others from here on: nothing that it made of them before stays
// in registers for its sake.
template <int kCount>
__device__ inline void forget([[maybe_unused]] uint32_t (&words)[kCount]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(words[i]));
#endif
}

// Two 16-bit values in a word, the first one low.
template <class T>
__device__ inline uint32_t pack(float first, float second) {
  union {
    T items[2];
    uint32_t word;
  } pair{{T(first), T(second)}};
  return pair.word;
}

}  // namespace shiftmlp
