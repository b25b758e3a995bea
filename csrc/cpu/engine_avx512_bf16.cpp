// The engine for AVX-512 with AVX512_BF16: that for AVX-512, but for products of bfloat16 weights.
#include "engine.h"

#ifdef SHIFTMLP_AVX512_BF16
#include "avx512.h"
#ifdef SHIFTMLP_EMULATED
#elif defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "dot.h"

const shiftmlp::Engines* shiftmlp_engines_avx512_bf16() noexcept {
  using namespace shiftmlp;
  static const Engines engines = []() noexcept {
    Engines changed = *shiftmlp_engines_avx512();
    changed.name = "avx512_bf16";
    changed.single.scratch = pair_scratch;
    changed.single.pairs = kPairTerms;
    changed.single.pack = pack_either<kPairTerms>;
    changed.single.multiply = [](const Product<float>& product) {
      const bool pairs = product.left.dtype == DType::kBFloat16;
      pairs ? multiply_pairs(product) : shiftmlp_engines_avx512()->single.multiply(product);
    };
    return changed;
  }();
  return &engines;
}

#if defined(__clang__) && !defined(SHIFTMLP_EMULATED)
#pragma clang attribute pop
#endif
#endif
