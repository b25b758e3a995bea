// What the AVX-512 engines put in the place of plain code. A build for tests, with
// SHIFTMLP_EMULATED, keeps the plain code and runs on every processor.
#pragma once

#ifndef SHIFTMLP_EMULATED
#include <immintrin.h>
#define SHIFTMLP_WIDEN_HALF(x) _mm512_maskz_cvtph_ps(-1, (__m256i)(x))
#define SHIFTMLP_NARROW_HALF(x) _mm512_maskz_cvtps_ph(-1, (__m512)(x), _MM_FROUND_TO_NEAREST_INT)
#define SHIFTMLP_WIDEN_FLOATS(x) _mm512_maskz_cvtps_pd(-1, (__m256)(x))
#define SHIFTMLP_MIN(a, b) _mm512_maskz_min_ps(-1, a, b)
#define SHIFTMLP_MIN_MAGNITUDE(x, limit) _mm512_range_ps(x, limit, 2)
#define SHIFTMLP_PICK(low, index, high) _mm512_permutex2var_ps(low, (__m512i)(index), high)
#define SHIFTMLP_DOT(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
#define SHIFTMLP_NARROW_TWO(low, high) _mm512_cvtne2ps_pbh(high, low)
#endif

#define SHIFTMLP_BYTES 64
#define SHIFTMLP_COLUMNS 4
