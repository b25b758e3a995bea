// The instructions of sm_90a that C++ has no words for, each with what it does in the emulator:
// barriers with transaction counts, the tensor memory accelerator, and named barriers. The products
// of a warpgroup are in wgmma.h.
#pragma once

#include "primitives.h"

#ifdef __CUDACC__
#include <cuda.h>  // CUtensorMap; the driver itself is not linked

#include <stdexcept>
#include <string>
#endif

namespace shiftmlp {

constexpr size_t kSharedLimit = 227 << 10;  // of a block

// Whether the current device has these instructions, and how many multiprocessors it has.
inline bool is_hopper() {
#ifdef __CUDACC__
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major == 9 && minor == 0;
#else
  return emulator::capability() == 90;
#endif
}
inline int multiprocessors() {
#ifdef __CUDACC__
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
#else
  return emulator::kMultiprocessors;
#endif
}

// Joins barrier `id`, 1 to 15, with so many threads in all, whole warps; or only arrives there.
__device__ inline void named_barrier(int id, int threads,
                                     [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::barrier(id, threads, true, here);
#endif
}
__device__ inline void named_barrier_arrive(int id, int threads,
                                            [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::barrier(id, threads, false, here);
#endif
}

// Hands registers of this warpgroup back, or takes them: kCount for each thread from now on.
// Ignored unless the kernel's __launch_bounds__ says how many blocks share an SM.
template <int kCount>
__device__ void give_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ void take_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// Makes this thread's writes to shared memory visible to copies and products that run by
// themselves: TMA and wgmma. A barrier must follow before another thread starts one.
__device__ inline void async_proxy_fence() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emulator::async_proxy_fence();
#endif
}

// A barrier in shared memory whose phase ends when `arrivals` have come and all bytes that were
// expected have landed. Phases are counted modulo 2: the first one is 0.
struct Mbarrier {
  uint64_t state;
};

__device__ inline void mbarrier_init(Mbarrier& at, int arrivals,
                                     [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&at)), "r"(arrivals)
               : "memory");
#else
  emulator::mbarrier_init(&at, arrivals, here);
#endif
}

// Makes the initialisation visible to TMA; for the other threads a block barrier follows.
__device__ inline void mbarrier_init_fence() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void mbarrier_arrive(Mbarrier& at, [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&at)) : "memory");
#else
  emulator::mbarrier_arrive(&at, 0, here);
#endif
}

// Arrives, and has the phase wait for so many bytes more.
__device__ inline void mbarrier_arrive_expect(Mbarrier& at, int bytes,
                                              [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&at)),
               "r"(bytes)
               : "memory");
#else
  emulator::mbarrier_arrive(&at, bytes, here);
#endif
}

// Waits for the end of the phase of this parity: at once if the present one is of the other.
__device__ inline void mbarrier_wait(Mbarrier& at, int parity,
                                     [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(&at)),
      "r"(parity)
      : "memory");
#else
  emulator::mbarrier_wait(&at, parity, here);
#endif
}

// How TMA finds a tensor of 2 to 4 dimensions, the first one dense, and which box of it is copied
// at a time. Passed to kernels as const __grid_constant__. In shared memory, 16-byte words of a row
// of 128 bytes are exchanged by kSwizzle128: word i of row r stands at i ^ r % 8.
enum class Swizzle { kNone, kSwizzle128 };
#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using emulator::TensorMap;
#endif

// sizes, strides (of the dimensions after the first) and box in elements of T.
template <class T, int kRank>
TensorMap tensor_map(const T* data, const int64_t (&sizes)[kRank],
                     const int64_t (&strides)[kRank - 1], const int (&box)[kRank],
                     Swizzle swizzle) {
  static_assert(2 <= kRank && kRank <= 4);
#ifdef __CUDACC__
  cuuint64_t extents[kRank], pitches[kRank - 1];
  cuuint32_t boxes[kRank], ones[kRank];
  for (int i = 0; i < kRank; ++i) extents[i] = sizes[i], boxes[i] = box[i], ones[i] = 1;
  for (int i = 0; i < kRank - 1; ++i) pitches[i] = strides[i] * sizeof(T);
  const auto type = std::is_same_v<T, __nv_bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                    : std::is_same_v<T, __half>      ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                     &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  if (!encode) throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
  TensorMap map;
  const CUresult status =
      encode(&map, type, kRank, const_cast<T*>(data), extents, pitches, boxes, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle == Swizzle::kNone ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("no TMA for this tensor: CUresult " + std::to_string(status));
  }
  return map;
#else
  return emulator::tensor_map(data, sizeof(T), kRank, sizes, strides, box,
                              swizzle == Swizzle::kSwizzle128);
#endif
}

// Starts the copy of the box whose first element is `at`, the densest coordinate first. Elements
// outside of the tensor are zeros. All bytes of the box count at the barrier. By one thread.
template <int kRank>
__device__ void tma_load(void* shared, const TensorMap& map, Mbarrier& barrier,
                         const int (&at)[kRank], [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
#define SHIFTMLP_TMA_LOAD(rank, coordinates, ...)                                              \
  asm volatile("cp.async.bulk.tensor." rank                                                    \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates \
               "}], [%2];" ::"r"(shared_address(shared)),                                      \
               "l"(&map), "r"(shared_address(&barrier)), __VA_ARGS__                           \
               : "memory")
  if constexpr (kRank == 2) {
    SHIFTMLP_TMA_LOAD("2d", "%3, %4", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    SHIFTMLP_TMA_LOAD("3d", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else {
    static_assert(kRank == 4);
    SHIFTMLP_TMA_LOAD("4d", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  }
#undef SHIFTMLP_TMA_LOAD
#else
  emulator::tma_load(shared, map, &barrier, at, kRank, here);
#endif
}

// Starts the copy back. Elements outside of the tensor are not written.
template <int kRank>
__device__ void tma_store(const TensorMap& map, const int (&at)[kRank], const void* shared,
                          [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
#define SHIFTMLP_TMA_STORE(rank, coordinates, ...)                                              \
  asm volatile("cp.async.bulk.tensor." rank ".global.shared::cta.bulk_group [%0, {" coordinates \
               "}], [%1];" ::"l"(&map),                                                         \
               "r"(shared_address(shared)), __VA_ARGS__                                         \
               : "memory")
  if constexpr (kRank == 2) {
    SHIFTMLP_TMA_STORE("2d", "%2, %3", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    SHIFTMLP_TMA_STORE("3d", "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else {
    static_assert(kRank == 4);
    SHIFTMLP_TMA_STORE("4d", "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  }
#undef SHIFTMLP_TMA_STORE
#else
  emulator::tma_store(map, at, kRank, shared, here);
#endif
}

__device__ inline void tma_store_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emulator::tma_store_commit();
#endif
}

// Waits until all but kGroups of this thread's groups have read shared memory, which may then be
// written again.
template <int kGroups>
__device__ void tma_store_wait_read() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
#else
  emulator::tma_store_wait_read(kGroups);
#endif
}

// The opposite of ldmatrix: stores kCount 8 x 8 matrices from the same fragments.
template <bool kTranspose = false, int kCount>
__device__ void stmatrix(void* row, const uint32_t (&from)[kCount],
                         [[maybe_unused]] Here here = Here::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#ifdef __CUDACC__
  const uint32_t to = shared_address(row);
#define SHIFTMLP_STMATRIX(trans)                                                                \
  if constexpr (kCount == 1) {                                                                  \
    asm volatile("stmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 [%0], {%1};" ::"r"(to),     \
                 "r"(from[0])                                                                   \
                 : "memory");                                                                   \
  } else if constexpr (kCount == 2) {                                                           \
    asm volatile("stmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 [%0], {%1, %2};" ::"r"(to), \
                 "r"(from[0]), "r"(from[1])                                                     \
                 : "memory");                                                                   \
  } else {                                                                                      \
    asm volatile("stmatrix.sync.aligned.m8n8.x4" trans                                          \
                 ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),                               \
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])                         \
                 : "memory");                                                                   \
  }
  if constexpr (kTranspose) {
    SHIFTMLP_STMATRIX(".trans")
  } else {
    SHIFTMLP_STMATRIX("")
  }
#undef SHIFTMLP_STMATRIX
#else
  emulator::stmatrix(row, from, kCount, kTranspose, here);
#endif
}

}  // namespace shiftmlp
