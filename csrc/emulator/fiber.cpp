#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#error "the emulator's context switch is written for x86-64"
#endif

// Saves what a function must keep for its caller, and takes the same from the other stack.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4 << 10;  // a thread that overruns its stack faults there

Fiber* previous;  // the one that switched to the one that runs
Fiber* running;

}  // namespace

Fiber::Fiber(void (*entry)()) : entry_(entry), size_(kStackBytes) {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  stack_ = static_cast<char*>(memory) + kGuardBytes;
  // Six saved registers below the address to return to, which the calling convention wants at a
  // multiple of 16.
  auto* top = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(stack_) + size_);
  top[-2] = reinterpret_cast<uintptr_t>(&Fiber::begin);
  for (int i = 3; i <= 8; ++i) top[-i] = 0;
  stack_pointer_ = top - 8;
}

Fiber::~Fiber() {
  if (entry_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_, size_);  // of the marks of abandoned frames
#endif
  munmap(static_cast<char*>(const_cast<void*>(stack_)) - kGuardBytes, kGuardBytes + kStackBytes);
}

void Fiber::switch_to(Fiber& next) {
  previous = this;
  running = &next;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, next.stack_, next.size_);
#endif
  emulator_switch(&stack_pointer_, next.stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &previous->stack_, &previous->size_);
#endif
}

void Fiber::begin() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &previous->stack_, &previous->size_);
#endif
  running->entry_();
}

}  // namespace emulator
