// Whether AMX in bfloat16 may be used, for which a process has to ask Linux.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#include <sys/syscall.h>
#include <unistd.h>

namespace shiftmlp {

inline bool amx_is_allowed() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace shiftmlp
#else
namespace shiftmlp {
inline bool amx_is_allowed() { return false; }
}  // namespace shiftmlp
#endif
