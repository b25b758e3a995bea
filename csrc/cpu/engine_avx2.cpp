// The engine for AVX2, FMA and F16C, with registers of 32 bytes.
#ifdef __x86_64__
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define SHIFTMLP_BYTES 32
#define SHIFTMLP_COLUMNS 2
#define SHIFTMLP_WIDEN_HALF(x) _mm256_cvtph_ps((__m128i)(x))
#define SHIFTMLP_NARROW_HALF(x) _mm256_cvtps_ph((__m256)(x), _MM_FROUND_TO_NEAREST_INT)
#define SHIFTMLP_WIDEN_FLOATS(x) _mm256_cvtps_pd((__m128)(x))
#define SHIFTMLP_MIN(a, b) _mm256_min_ps(a, b)
#include "norm_backward.h"

const shiftmlp::Engines* shiftmlp_engines_avx2() noexcept {
  using namespace shiftmlp;
  static constexpr Engines engines = {"avx2", kEngine<float>, kEngine<double>};
  return &engines;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
