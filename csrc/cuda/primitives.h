// The instructions of sm_80 that C++ has no words for, each with what it does in the emulator.
// Fragments are those of the PTX ISA, "Warp level matrix instructions"; g = lane / 4, q = lane % 4.
#pragma once

#include <cmath>
#include <type_traits>

#include "device.h"

namespace shiftmlp {

constexpr uint32_t kAllLanes = 0xffffffff;

// The number by which the instructions below know a place in shared memory.
__device__ inline uint32_t shared_address(const void* shared) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
#else
  return emulator::shared_address(shared);
#endif
}

// The address as one of a T, which is accessed as a whole and must lie on a multiple of its size.
template <class T>
__device__ T* aligned(const void* at, [[maybe_unused]] Here here = Here::current()) {
#ifndef __CUDACC__
  emulator::check_aligned(at, sizeof(T), here);
#endif
  return static_cast<T*>(const_cast<void*>(at));
}

// Stores 16 bytes of global memory at once, which the compiler sometimes takes apart.
__device__ inline void store_global(void* to, const uint32_t* words,
                                    [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
#else
  emulator::check_aligned(to, 16, here);
  for (int i = 0; i < 4; ++i) static_cast<uint32_t*>(to)[i] = words[i];
#endif
}

__device__ inline void block_barrier([[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  __syncthreads();
#else
  emulator::barrier(0, 0, true, here);
#endif
}

__device__ inline void warp_barrier([[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  __syncwarp();
#else
  emulator::warp_barrier(here);
#endif
}

// The value of lane `lane`, or of the lane whose number differs by the bits of `mask`.
template <class T>
__device__ T shuffle(T value, int lane, [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  return __shfl_sync(kAllLanes, value, lane);
#else
  emulator::shuffle(&value, sizeof value, lane, here);
  return value;
#endif
}
template <class T>
__device__ T shuffle_xor(T value, int mask, [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  return __shfl_xor_sync(kAllLanes, value, mask);
#else
  return shuffle(value, emulator::lane() ^ mask, here);
#endif
}

// Starts the copy of kBytes (4, 8 or 16, to which both addresses are aligned) from global to shared
// memory; of zeros, without reading, where `inside` is false.
template <int kBytes>
__device__ void cp_async(void* shared, const void* global, bool inside,
                         [[maybe_unused]] Here here = Here::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef __CUDACC__
  const uint32_t to = shared_address(shared);
  const int read = inside ? kBytes : 0;
  if constexpr (kBytes == 16) {  // past the first-level cache, which only this size may pass
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(read)
                 : "memory");
  }
#else
  emulator::cp_async(shared, global, kBytes, inside, here);
#endif
}

// Closes this thread's group of copies. One that holds none is complete at once.
__device__ inline void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::cp_async_commit();
#endif
}

// Waits until at most kGroups of this thread's groups, the latest, are under way. What landed is
// seen by this thread alone until a barrier.
template <int kGroups>
__device__ void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  emulator::cp_async_wait(kGroups);
#endif
}

// Loads kCount 8 x 8 matrices of 16-bit values. Lane i gives the address of row i % 8 of matrix
// i / 8; it gets, of each matrix, columns 2q and 2q + 1 of row g, or with kTranspose those rows of
// column g.
template <bool kTranspose = false, int kCount>
__device__ void ldmatrix(uint32_t (&to)[kCount], const void* row,
                         [[maybe_unused]] Here here = Here::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#ifdef __CUDACC__
  const uint32_t from = shared_address(row);
#define SHIFTMLP_LDMATRIX(trans)                                                             \
  if constexpr (kCount == 1) {                                                               \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                 : "=r"(to[0])                                                               \
                 : "r"(from)                                                                 \
                 : "memory");                                                                \
  } else if constexpr (kCount == 2) {                                                        \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(to[0]), "=r"(to[1])                                                  \
                 : "r"(from)                                                                 \
                 : "memory");                                                                \
  } else {                                                                                   \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])                        \
                 : "r"(from)                                                                 \
                 : "memory");                                                                \
  }
  if constexpr (kTranspose) {
    SHIFTMLP_LDMATRIX(".trans")
  } else {
    SHIFTMLP_LDMATRIX("")
  }
#undef SHIFTMLP_LDMATRIX
#else
  emulator::ldmatrix(to, row, kCount, kTranspose, here);
#endif
}

// The products below take d as the sum so far. Of d, 16 x 8, a lane holds columns 2q and 2q + 1 of
// row g, then of row g + 8. Of a, it holds a quarter in each word: first rows and first columns,
// last rows and first columns, first rows and last columns, last and last. Of b, a half of the
// rows.
#define SHIFTMLP_MMA(shape, type)                             \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type \
      ".f32 {%0, %1, %2, %3}, "                               \
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// d += a b, 16 x 16 by 16 x 8, of T, which is bfloat16 or half. A word holds columns 2q and 2q + 1
// of row g of its quarter of a, and rows 2q and 2q + 1 of column g of its half of b.
template <class T>
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    SHIFTMLP_MMA("m16n8k16", "bf16");
  } else {
    static_assert(std::is_same_v<T, __half>);
    SHIFTMLP_MMA("m16n8k16", "f16");
  }
#else
  emulator::mma<T>(d, a, b, here);
#endif
}

// d += a b, 16 x 8 by 8 x 8, of floats rounded by to_tf32. A word holds column q of row g of its
// quarter of a, and row q of column g of its half of b.
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  SHIFTMLP_MMA("m16n8k8", "tf32");
#else
  emulator::mma_tf32(d, a, b, here);
#endif
}
#undef SHIFTMLP_MMA

// Rounded to 10 bits of fraction, halves away from zero.
__device__ inline uint32_t to_tf32(float value) {
#ifdef __CUDACC__
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
#else
  return emulator::to_tf32(value);
#endif
}

// 2^x and 1 / x, to 2^-22 of the result; results below 2^-126 are 0, and so are x for 1 / x.
__device__ inline float exp2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::flushed(std::exp2(x));
#endif
}
__device__ inline float reciprocal_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::flushed(1.0f / emulator::flushed(x));
#endif
}

}  // namespace shiftmlp
