// What the package knows about this machine and its own build, without torch.
#include <pybind11/pybind11.h>

#include "../amx_allowed.h"
#include "peak.h"

namespace {

namespace py = pybind11;

#if defined(__x86_64__)
// Each answer includes the operating system's: whether it saves the registers.
py::dict cpu_features() {
  __builtin_cpu_init();
  py::dict features;
  features["avx2"] = bool(__builtin_cpu_supports("avx2"));
  features["fma"] = bool(__builtin_cpu_supports("fma"));
  features["f16c"] = bool(__builtin_cpu_supports("f16c"));
  features["avx512f"] = bool(__builtin_cpu_supports("avx512f"));
  features["avx512bw"] = bool(__builtin_cpu_supports("avx512bw"));
  features["avx512dq"] = bool(__builtin_cpu_supports("avx512dq"));
  features["avx512vl"] = bool(__builtin_cpu_supports("avx512vl"));
  features["avx512bf16"] = bool(__builtin_cpu_supports("avx512bf16"));
  features["amx_bf16"] = shiftmlp::amx_is_allowed();
  return features;
}

const char* cpu_vendor() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") ? "intel" : __builtin_cpu_is("amd") ? "amd" : "other";
}
#else
py::dict cpu_features() { return {}; }
const char* cpu_vendor() { return "other"; }
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["torch"] = SHIFTMLP_TORCH;
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.def("cpu_features", &cpu_features, "Instruction sets that this machine can run, by name.");
  m.def("cpu_vendor", &cpu_vendor, "\"intel\", \"amd\" or \"other\".");
  m.def(
      "peak_rates", &peak_rates,
      "Measured multiply-add FLOP/s of one core, by dtype; missing where there is no code for it.");
  m.def("build_info", &build_info, "The compiler, and the torch whose headers were used.");
}
