// Stands between the kernels' launches and the emulator, by the linker's --wrap: notes what would
// be launched, and runs nothing.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <string>
#include <utility>

static std::string noted;

extern "C" {

// emulator::run. Its last argument is the call, whose first part refers to the kernel.
void __wrap__ZN8emulator3runEi4dim3S0_mPFvPKvES2_(int cluster, dim3 grid, dim3, size_t,
                                                  void (*)(const void*), const void* call) {
  const void* const kernel = **static_cast<const void* const* const*>(call);
  Dl_info library;
  dladdr(kernel, &library);
  const auto place = static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase);
  for (const size_t n : {size_t(place), size_t(cluster), size_t(grid.x) * grid.y * grid.z}) {
    noted += std::to_string(n) + ' ';
  }
}

// All that was launched since the last time: where its kernel stands in the library, the blocks of
// a cluster and all of them.
__attribute__((visibility("default"))) const char* launches() {
  static std::string told;
  told = std::exchange(noted, {});
  return told.c_str();
}

}  // extern "C"
