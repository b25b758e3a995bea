// The engine for AVX-512 (F, BW, DQ, VL), with registers of 64 bytes.
#ifdef __x86_64__
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define SHIFTMLP_BYTES 64
#define SHIFTMLP_COLUMNS 4
#define SHIFTMLP_WIDEN_HALF(x) _mm512_maskz_cvtph_ps(-1, (__m256i)(x))
#define SHIFTMLP_NARROW_HALF(x) _mm512_maskz_cvtps_ph(-1, (__m512)(x), _MM_FROUND_TO_NEAREST_INT)
#define SHIFTMLP_MIN(a, b) _mm512_maskz_min_ps(-1, a, b)
#define SHIFTMLP_MAX(a, b) _mm512_maskz_max_ps(-1, a, b)
#include "norm_backward.h"

const shiftmlp::Engines* shiftmlp_engines_avx512() {
  using namespace shiftmlp;
  static constexpr Engines engines = {"avx512", kEngine<float>, kEngine<double>};
  return &engines;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
