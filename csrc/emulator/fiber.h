// A stack of its own and the switch to it: what a CUDA thread runs on. x86-64 only.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber() = default;                // the stack that the program runs on already
  explicit Fiber(void (*entry)());  // which must not return
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on in `next` where that left off; returns when somebody switches back to this one.
  void switch_to(Fiber& next);

  bool has_on_its_stack(const void* at) const {
    return size_t(static_cast<const char*>(at) - static_cast<const char*>(stack_)) < size_;
  }

 private:
  static void begin();

  void (*entry_)() = nullptr;
  void* stack_pointer_ = nullptr;
  const void* stack_ = nullptr;  // its lowest address
  size_t size_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace emulator
