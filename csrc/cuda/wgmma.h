// The products of a warpgroup on sm_90a: 64 x N by 16, with operands that are read asynchronously.
#pragma once

#include "hopper.h"

namespace shiftmlp {

// How wgmma finds an operand in shared memory: 8 rows of 128 bytes, swizzled, are a block of 1024,
// to which `shared` is aligned but for a step along the rows.
// K-major: a row holds 64 values of k; 8 rows of m or n a block, `rows` bytes from the next.
// Otherwise a row holds 64 of m or n; 8 of k a block, `rows` bytes from the next 8 of k and
// `columns` from the next 64 of m or n.
__device__ inline uint64_t wgmma_operand(const void* shared, int rows = 1024, int columns = 16) {
  const uint64_t address = shared_address(shared);
  return (address & 0x3ffff) >> 4 | uint64_t(columns >> 4) << 16 | uint64_t(rows >> 4) << 32 |
         uint64_t{1} << 62;
}

// Which index runs along a row of shared memory.
enum class Major { kK, kMN };

// Before the first product and after every other access to the registers that it will use.
__device__ inline void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_fence();
#endif
}

// The left operand is named so that the compiler moves no part of its making behind the fence. It
// stays as it is until the product has been waited for.
__device__ inline void wgmma_fence(uint32_t (&a)[4]) {
  forget(a);
  wgmma_fence();
}
template <int kSteps>
__device__ void wgmma_fence([[maybe_unused]] uint32_t (&a)[kSteps][4]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < 4 * kSteps; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
#endif
  wgmma_fence();
}

__device__ inline void wgmma_commit([[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_commit(here);
#endif
}

// Waits until at most kGroups are under way: the operands of the others are free then.
template <int kGroups>
__device__ void wgmma_wait([[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
#else
  emulator::wgmma_wait(kGroups, here);
#endif
}

// The same, after which sums are there too.
// The sums are named so that the compiler moves no access to them before the wait.
template <int kGroups, int kCount>
__device__ void wgmma_wait([[maybe_unused]] float (&d)[kCount],
                           [[maybe_unused]] Here here = Here::current()) {
  wgmma_wait<kGroups>(here);
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

template <int kGroups, int kCount, int kOtherCount>
__device__ void wgmma_wait(float (&d)[kCount], [[maybe_unused]] float (&other)[kOtherCount],
                           Here here = Here::current()) {
  wgmma_wait<kGroups>(d, here);
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kOtherCount; ++i) asm volatile("" : "+f"(other[i])::"memory");
#endif
}

#ifdef __CUDACC__
// A list of the registers from 1 on, for each number of them; and for each n the numbers of the
// operands that follow them. Such lists cannot be made by a template.
#define SHIFTMLP_R4(X) X(1) X(2) X(3)
#define SHIFTMLP_R8(X) SHIFTMLP_R4(X) X(4) X(5) X(6) X(7)
#define SHIFTMLP_R12(X) SHIFTMLP_R8(X) X(8) X(9) X(10) X(11)
#define SHIFTMLP_R16(X) SHIFTMLP_R12(X) X(12) X(13) X(14) X(15)
#define SHIFTMLP_R20(X) SHIFTMLP_R16(X) X(16) X(17) X(18) X(19)
#define SHIFTMLP_R24(X) SHIFTMLP_R20(X) X(20) X(21) X(22) X(23)
#define SHIFTMLP_R28(X) SHIFTMLP_R24(X) X(24) X(25) X(26) X(27)
#define SHIFTMLP_R32(X) SHIFTMLP_R28(X) X(28) X(29) X(30) X(31)
#define SHIFTMLP_R36(X) SHIFTMLP_R32(X) X(32) X(33) X(34) X(35)
#define SHIFTMLP_R40(X) SHIFTMLP_R36(X) X(36) X(37) X(38) X(39)
#define SHIFTMLP_R44(X) SHIFTMLP_R40(X) X(40) X(41) X(42) X(43)
#define SHIFTMLP_R48(X) SHIFTMLP_R44(X) X(44) X(45) X(46) X(47)
#define SHIFTMLP_R52(X) SHIFTMLP_R48(X) X(48) X(49) X(50) X(51)
#define SHIFTMLP_R56(X) SHIFTMLP_R52(X) X(52) X(53) X(54) X(55)
#define SHIFTMLP_R60(X) SHIFTMLP_R56(X) X(56) X(57) X(58) X(59)
#define SHIFTMLP_R64(X) SHIFTMLP_R60(X) X(60) X(61) X(62) X(63)
#define SHIFTMLP_R68(X) SHIFTMLP_R64(X) X(64) X(65) X(66) X(67)
#define SHIFTMLP_R72(X) SHIFTMLP_R68(X) X(68) X(69) X(70) X(71)
#define SHIFTMLP_R76(X) SHIFTMLP_R72(X) X(72) X(73) X(74) X(75)
#define SHIFTMLP_R80(X) SHIFTMLP_R76(X) X(76) X(77) X(78) X(79)
#define SHIFTMLP_R84(X) SHIFTMLP_R80(X) X(80) X(81) X(82) X(83)
#define SHIFTMLP_R88(X) SHIFTMLP_R84(X) X(84) X(85) X(86) X(87)
#define SHIFTMLP_R92(X) SHIFTMLP_R88(X) X(88) X(89) X(90) X(91)
#define SHIFTMLP_R96(X) SHIFTMLP_R92(X) X(92) X(93) X(94) X(95)
#define SHIFTMLP_R100(X) SHIFTMLP_R96(X) X(96) X(97) X(98) X(99)
#define SHIFTMLP_R104(X) SHIFTMLP_R100(X) X(100) X(101) X(102) X(103)
#define SHIFTMLP_R108(X) SHIFTMLP_R104(X) X(104) X(105) X(106) X(107)
#define SHIFTMLP_R112(X) SHIFTMLP_R108(X) X(108) X(109) X(110) X(111)
#define SHIFTMLP_R116(X) SHIFTMLP_R112(X) X(112) X(113) X(114) X(115)
#define SHIFTMLP_R120(X) SHIFTMLP_R116(X) X(116) X(117) X(118) X(119)
#define SHIFTMLP_R124(X) SHIFTMLP_R120(X) X(120) X(121) X(122) X(123)
#define SHIFTMLP_R128(X) SHIFTMLP_R124(X) X(124) X(125) X(126) X(127)
#define SHIFTMLP_WGMMA_SHAPES(X)            \
  X(8, 4, 5, 6, 7, 8, 9, 10)                \
  X(16, 8, 9, 10, 11, 12, 13, 14)           \
  X(24, 12, 13, 14, 15, 16, 17, 18)         \
  X(32, 16, 17, 18, 19, 20, 21, 22)         \
  X(40, 20, 21, 22, 23, 24, 25, 26)         \
  X(48, 24, 25, 26, 27, 28, 29, 30)         \
  X(56, 28, 29, 30, 31, 32, 33, 34)         \
  X(64, 32, 33, 34, 35, 36, 37, 38)         \
  X(72, 36, 37, 38, 39, 40, 41, 42)         \
  X(80, 40, 41, 42, 43, 44, 45, 46)         \
  X(88, 44, 45, 46, 47, 48, 49, 50)         \
  X(96, 48, 49, 50, 51, 52, 53, 54)         \
  X(104, 52, 53, 54, 55, 56, 57, 58)        \
  X(112, 56, 57, 58, 59, 60, 61, 62)        \
  X(120, 60, 61, 62, 63, 64, 65, 66)        \
  X(128, 64, 65, 66, 67, 68, 69, 70)        \
  X(136, 68, 69, 70, 71, 72, 73, 74)        \
  X(144, 72, 73, 74, 75, 76, 77, 78)        \
  X(152, 76, 77, 78, 79, 80, 81, 82)        \
  X(160, 80, 81, 82, 83, 84, 85, 86)        \
  X(168, 84, 85, 86, 87, 88, 89, 90)        \
  X(176, 88, 89, 90, 91, 92, 93, 94)        \
  X(184, 92, 93, 94, 95, 96, 97, 98)        \
  X(192, 96, 97, 98, 99, 100, 101, 102)     \
  X(200, 100, 101, 102, 103, 104, 105, 106) \
  X(208, 104, 105, 106, 107, 108, 109, 110) \
  X(216, 108, 109, 110, 111, 112, 113, 114) \
  X(224, 112, 113, 114, 115, 116, 117, 118) \
  X(232, 116, 117, 118, 119, 120, 121, 122) \
  X(240, 120, 121, 122, 123, 124, 125, 126) \
  X(248, 124, 125, 126, 127, 128, 129, 130) \
  X(256, 128, 129, 130, 131, 132, 133, 134)
#define SHIFTMLP_NAME(i) ", %" #i
#define SHIFTMLP_OPERAND(i) , "+f"(d[i])
// The operands that differ are named by their numbers in `inputs`; `p` holds whether d is added to.
#define SHIFTMLP_WGMMA(n, r, accumulates, type, inputs, ...)                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulates               \
               ", 0;\n"                                                        \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type \
               " {%0" SHIFTMLP_R##r(SHIFTMLP_NAME) "}, " inputs ";\n}\n"       \
               : "+f"(d[0])SHIFTMLP_R##r(SHIFTMLP_OPERAND)                     \
               : __VA_ARGS__)
#define SHIFTMLP_WGMMA_SS(n, r, r1, r2, r3, r4, r5, r6)                                       \
  if constexpr (kN == n) {                                                                    \
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {                                         \
      SHIFTMLP_WGMMA(n, r, r2, "bf16", "%" #r ", %" #r1 ", p, 1, 1, %" #r3 ", %" #r4, "l"(a), \
                     "l"(b), "r"(int(accumulate)), "n"(int(kMajorA)), "n"(int(kMajorB)));     \
    } else {                                                                                  \
      SHIFTMLP_WGMMA(n, r, r2, "f16", "%" #r ", %" #r1 ", p, 1, 1, %" #r3 ", %" #r4, "l"(a),  \
                     "l"(b), "r"(int(accumulate)), "n"(int(kMajorA)), "n"(int(kMajorB)));     \
    }                                                                                         \
  }
#define SHIFTMLP_WGMMA_RS(n, r, r1, r2, r3, r4, r5, r6)                                        \
  if constexpr (kN == n) {                                                                     \
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {                                          \
      SHIFTMLP_WGMMA(n, r, r5, "bf16",                                                         \
                     "{%" #r ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1, %" #r6,      \
                     "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), \
                     "n"(int(kMajorB)));                                                       \
    } else {                                                                                   \
      SHIFTMLP_WGMMA(n, r, r5, "f16",                                                          \
                     "{%" #r ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1, %" #r6,      \
                     "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), \
                     "n"(int(kMajorB)));                                                       \
    }                                                                                          \
  }
#endif

// d = a b, or d += a b: 64 x 16 by 16 x kN of T, which is bfloat16 or half. Warp i of the
// warpgroup gets rows 16i to 16i + 15 of d, and its lanes the columns in eights as from mma.
template <class T, int kN, Major kMajorA = Major::kK, Major kMajorB = Major::kK>
__device__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate,
                      [[maybe_unused]] Here here = Here::current()) {
  static_assert(kN % 8 == 0 && 8 <= kN && kN <= 256);
#ifdef __CUDACC__
  SHIFTMLP_WGMMA_SHAPES(SHIFTMLP_WGMMA_SS)
#else
  emulator::wgmma<T>(d, kN, a, kMajorA == Major::kK, b, kMajorB == Major::kK, accumulate, here);
#endif
}

// The same with a in registers: a warp's 16 rows, as for mma.
template <class T, int kN, Major kMajorB = Major::kK>
__device__ void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,
                      [[maybe_unused]] Here here = Here::current()) {
  static_assert(kN % 8 == 0 && 8 <= kN && kN <= 256);
#ifdef __CUDACC__
  SHIFTMLP_WGMMA_SHAPES(SHIFTMLP_WGMMA_RS)
#else
  emulator::wgmma<T>(d, kN, a, b, kMajorB == Major::kK, accumulate, here);
#endif
}

}  // namespace shiftmlp
