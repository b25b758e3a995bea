// What one core can do: chains of multiply-adds that never leave the registers.
#include "peak.h"

#include <algorithm>
#include <cstdint>
#include <ctime>

#include "../amx_allowed.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace {

constexpr int kChains = 12;  // more than are in flight on any core; with operands 14 of AVX2's 16
constexpr long kSteps = 1 << 16;
constexpr int kSamples = 20;

// A macro because code for an instruction set is not inlined from a function without it.
#define CHAINS(name, isa, Vector, start, step)          \
  __attribute__((target(isa))) float name(long steps) { \
    Vector sums[kChains], a = start;                    \
    for (Vector& sum : sums) sum = start;               \
    for (long i = 0; i < steps; ++i)                    \
      for (Vector& sum : sums) sum = step;              \
    float total = 0;                                    \
    for (Vector& sum : sums) total += sum[0];           \
    return total;                                       \
  }

CHAINS(avx2, "avx2,fma", __m256, _mm256_set1_ps(0.5f), _mm256_fmadd_ps(a, sum, a))
CHAINS(avx512, "avx512f", __m512, _mm512_set1_ps(0.5f), _mm512_fmadd_ps(a, sum, a))
CHAINS(bf16, "avx512f,avx512bf16", __m512, _mm512_set1_ps(0.5f),
       _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)a))

// The same of products of 16 rows of 32 numbers each, in registers that hold zeros.
__attribute__((target("amx-tile,amx-bf16"))) float amx(long steps) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  asm volatile("ldtilecfg %0" ::"m"(shape));  // of which gcc 12's intrinsic tells 8 bytes alone
  static_assert(kChains % 4 == 0);
  for (long i = 0; i < steps * kChains / 4; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 0;
}

double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

double rate(float (*chains)(long), int flops_per_step) {
  volatile long steps = kSteps;  // volatile keeps the call between the two clocks
  [[maybe_unused]] volatile float kept;
  double best = 0;
  for (int sample = 0; sample < kSamples; ++sample) {
    double start = seconds();
    kept = chains(steps);
    best = std::max(best, double(kSteps) * kChains * flops_per_step / (seconds() - start));
  }
  return best;
}

}  // namespace

pybind11::dict peak_rates() {
  __builtin_cpu_init();
  pybind11::dict rates;
  if (__builtin_cpu_supports("avx512f"))
    rates["float32"] = rate(avx512, 2 * 16);
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    rates["float32"] = rate(avx2, 2 * 8);
  if (__builtin_cpu_supports("avx512bf16")) rates["bfloat16"] = rate(bf16, 2 * 32);
  if (shiftmlp::amx_is_allowed()) rates["bfloat16"] = rate(amx, 2 * 32 * 16 * 16);
  return rates;
}
#else
pybind11::dict peak_rates() { return {}; }
#endif
