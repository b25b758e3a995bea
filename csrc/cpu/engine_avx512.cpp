// The engine for AVX-512 (F, BW, DQ, VL), with registers of 64 bytes.
#ifdef __x86_64__
#include "avx512.h"
#ifdef SHIFTMLP_EMULATED
#elif defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "norm_backward.h"

const shiftmlp::Engines* shiftmlp_engines_avx512() noexcept {
  using namespace shiftmlp;
  static constexpr Engines engines = {"avx512", kEngine<float>, kEngine<double>};
  return &engines;
}

#if defined(__clang__) && !defined(SHIFTMLP_EMULATED)
#pragma clang attribute pop
#endif
#endif
