// Chooses the engine, once: what the processor and the system have, as far as torch may use it.
#include <cstdlib>
#include <string_view>

#include "../amx_allowed.h"
#include "operands.h"

namespace shiftmlp {
namespace {

#ifdef SHIFTMLP_EMULATED
constexpr bool kEmulated = true;  // for tests: the AVX-512 units are code for every processor
#else
constexpr bool kEmulated = false;
#endif

const Engines& choose() {
  const char* set = std::getenv("ATEN_CPU_CAPABILITY");
  [[maybe_unused]] const std::string_view limit = set == nullptr ? "" : set;
#ifdef __x86_64__
  const auto has = [](auto... supported) { return (supported && ...); };
  if (limit != "default") {
    if (limit != "avx2" &&
        (kEmulated ||
         has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
             __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl")))) {
      // torch's ladder ends with "avx512".
#ifdef SHIFTMLP_AMX
      if (limit != "avx512" && limit != "avx512_bf16" && (kEmulated || amx_is_allowed())) {
        return *shiftmlp_engines_amx();
      }
#endif
#ifdef SHIFTMLP_AVX512_BF16
      if (limit != "avx512" && (kEmulated || __builtin_cpu_supports("avx512bf16"))) {
        return *shiftmlp_engines_avx512_bf16();
      }
#endif
      return *shiftmlp_engines_avx512();
    }
    if (has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"),
            __builtin_cpu_supports("f16c"))) {
      return *shiftmlp_engines_avx2();
    }
  }
#endif
  return *shiftmlp_engines_plain();
}

}  // namespace

const Engines& engines() {
  static const Engines& chosen = choose();
  return chosen;
}

}  // namespace shiftmlp

extern "C" __attribute__((visibility("default"))) const char* shiftmlp_cpu_engine() {
  return shiftmlp::engines().name;
}
