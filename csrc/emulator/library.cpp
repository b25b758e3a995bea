// What tests load: each function runs a kernel and returns nullptr, or what went wrong.
#include <exception>
#include <string>

#include "../cuda/token_linear.h"
#include "emulator.h"
#include "hopper_example.h"

namespace {

template <class Launch>
const char* run(uint64_t seed, const Launch& launch) {
  static std::string message;
  emulator::set_seed(seed);
  try {
    launch();
    return nullptr;
  } catch (const std::exception& error) {
    return (message = error.what()).c_str();
  }
}

}  // namespace

extern "C" {

const char* token_linear(uint64_t seed, const shiftmlp::TokenLinearParams& p,
                         shiftmlp::DType dtype) {
  return run(seed, [&] { shiftmlp::launch_token_linear(p, dtype, nullptr); });
}

const char* hopper_example(uint64_t seed, const shiftmlp::HopperExampleParams& p,
                           shiftmlp::DType dtype) {
  return run(seed, [&] { shiftmlp::launch_hopper_example(p, dtype, nullptr); });
}

}  // extern "C"
