// The engine for AMX in bfloat16: that for AVX-512, but for products of bfloat16 weights.
#include "engine.h"

#ifdef SHIFTMLP_AMX
#include "avx512.h"
#ifdef SHIFTMLP_EMULATED
#elif defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "amx.h"

const shiftmlp::Engines* shiftmlp_engines_amx() noexcept {
  using namespace shiftmlp;
  static const Engines engines = []() noexcept {
    Engines changed = *shiftmlp_engines_avx512();
    changed.name = "amx";
    changed.single.tile_lanes = 256;
    changed.single.terms = kStepTerms;
    changed.single.scratch = tile_scratch;
    changed.single.pairs = kStepTerms;
    changed.single.rounds = true;
    changed.single.pack = pack_either<kStepTerms>;
    changed.single.sum_lanes = sum_either;
    changed.single.multiply = [](const Product<float>& product) {
      const bool tiles = product.rounded || product.left.dtype == DType::kBFloat16;
      tiles ? multiply_tiles(product) : shiftmlp_engines_avx512()->single.multiply(product);
    };
    return changed;
  }();
  return &engines;
}

#if defined(__clang__) && !defined(SHIFTMLP_EMULATED)
#pragma clang attribute pop
#endif
#endif
