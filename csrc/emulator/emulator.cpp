#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "fiber.h"

namespace emulator {
namespace {

uint64_t random_state;
int played = 90;

// splitmix64: the same order for a seed on every machine.
uint32_t random(uint32_t below) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32) % below;
}

std::vector<int> random_order(int n) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int i = n - 1; i > 0; --i) std::swap(order[i], order[random(i + 1)]);
  return order;
}

constexpr std::align_val_t kSharedAlignment{1024};

std::string where(const Here& here) {
  const std::string file = here.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(here.line());
}

bool same_line(const Here& a, const Here& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

struct Barrier {
  int arrived, threads;
  Here here;
  Queue queue;
};

struct Warp {
  uint32_t ready = 0;  // lanes that can go on
  Meeting meeting{};
};

struct FreeAligned {
  void operator()(unsigned char* memory) const { operator delete[](memory, kSharedAlignment); }
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[16] = {};
  std::vector<std::function<void()>> pending;
  std::unique_ptr<unsigned char[], FreeAligned> shared;
  size_t shared_bytes;
  Hopper hopper;
  Thread* running = nullptr;  // nullptr: the host
  int left;                   // threads that have not exited

  // Either the first warp of `priority` that can go on does, so that one runs as far as it goes
  // while others starve; or a random warp does, until it waits or is preempted.
  bool strict;
  std::vector<int> priority;
  int favourite = 0;

  Block(dim3 size, size_t shared_bytes);
  Thread* choose();
  std::string report() const;
};

Block* block;
void (*kernel)(const void*);
const void* arguments;
std::string error;

// Kept from block to block. A run that failed leaves its threads where they stood: those go.
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber host;

Fiber& fiber_of(const Thread* thread) { return thread ? *fibers[thread->rank] : host; }

// nullptr: with the host.
void go_on_with(Thread* thread) {
  Thread* me = block->running;
  if (thread == me) return;
  block->running = thread;
  if (thread) threadIdx = thread->index;
  fiber_of(me).switch_to(fiber_of(thread));
}

void let_others_go_on() {
  Thread* next = block->choose();
  if (!next) fail("deadlock: " + block->report(), self().here);
  go_on_with(next);
}

void live() {
  for (;;) {
    kernel(arguments);
    Thread& me = self();
    if (!me.copies.idle()) fail("exits with copies that it never waited for", me.here);
    if (!block->hopper.products[me.warp()].idle()) fail("exits with products under way", me.here);
    if (!me.stores.idle()) fail("exits while TMA reads shared memory", me.here);
    me.exited = true;
    block->warps[me.warp()].ready &= ~(1u << me.lane());
    if (--block->left == 0) {
      if (!block->pending.empty()) fail("the block exits with TMA copies under way", me.here);
      go_on_with(nullptr);
    } else {
      let_others_go_on();
    }
  }
}

Block::Block(dim3 size, size_t bytes) : shared_bytes(bytes), left(size.x * size.y * size.z) {
  warps.resize((left + kWarp - 1) / kWarp);
  strict = random(2);
  priority = random_order(warps.size());
  for (int rank = 0; rank < left; ++rank) {
    const unsigned i = rank;
    const uint3 index{i % size.x, i / size.x % size.y, i / size.x / size.y};
    threads.push_back({rank, index, "", Here::current(), false, {}, {}, false});
    warps[rank / kWarp].ready |= 1u << rank % kWarp;
    if (fibers.size() <= i) fibers.push_back(std::make_unique<Fiber>(live));
  }
  // No byte more than asked for: AddressSanitizer sees an access behind it.
  shared.reset(new (kSharedAlignment) unsigned char[bytes]);
  std::memset(shared.get(), kNaN, bytes);
  hopper.shared.resize(bytes, kNaN);
  hopper.products.resize(warps.size());
  hopper.sums.resize(warps.size());
}

// Who goes on; nullptr if nobody can.
Thread* Block::choose() {
  const auto can = [this](int warp) { return warps[warp].ready != 0; };
  for (;;) {
    const bool idle = std::none_of(priority.begin(), priority.end(), can);
    if (pending.empty() || !(idle || (!strict && random(8) == 0))) {
      if (idle) return nullptr;
      break;
    }
    std::swap(pending[random(pending.size())], pending.back());
    const auto work = std::move(pending.back());
    pending.pop_back();
    work();
  }
  if (strict) favourite = *std::find_if(priority.begin(), priority.end(), can);
  while (!can(favourite)) favourite = random(warps.size());
  const uint32_t ready = warps[favourite].ready;
  const int first = strict ? 0 : random(kWarp);
  const int lane =
      (first + __builtin_ctz(ready >> first | ready << (kWarp - first) % kWarp)) % kWarp;
  return &threads[favourite * kWarp + lane];
}

// "threads 0-31, 64 wait for a barrier (kernel.cu:12); threads 32-63 have exited"
std::string Block::report() const {
  const auto doing = [](const Thread& thread) -> std::string {
    if (thread.exited) return "have exited";
    if (!*thread.waits_for) return "could go on";
    return std::string("wait for ") + thread.waits_for + " (" + where(thread.here) + ")";
  };
  std::map<std::string, std::vector<int>> groups;
  for (const Thread& thread : threads) groups[doing(thread)].push_back(thread.rank);
  std::ostringstream text;
  const char* separator = "";
  for (const auto& [what, ranks] : groups) {
    text << std::exchange(separator, "; ") << "threads ";
    for (size_t first = 0, last; first < ranks.size(); first = last + 1) {
      for (last = first; last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1;) ++last;
      text << (first ? ", " : "") << ranks[first];
      if (last != first) text << "-" << ranks[last];
    }
    text << " " << what;
  }
  return text.str();
}

}  // namespace

void set_seed(uint64_t seed) { random_state = seed; }

void set_capability(int capability) { played = capability; }
int capability() { return played; }

Thread& self() { return *block->running; }

Hopper& hopper() { return block->hopper; }

unsigned char* shared_memory() { return block->shared.get(); }

uint32_t shared_address(const void* shared) {
  return static_cast<const unsigned char*>(shared) - shared_memory();
}

int lane() { return self().lane(); }

void run(dim3 grid, dim3 size, size_t shared_bytes, void (*kernel_to_run)(const void*),
         const void* its_arguments) {
  kernel = kernel_to_run, arguments = its_arguments;
  gridDim = grid, blockDim = size;
  for (const int i : random_order(grid.x * grid.y * grid.z)) {
    const unsigned n = i;
    blockIdx = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
    Block fresh(size, shared_bytes);
    block = &fresh;
    go_on_with(block->choose());
    if (!error.empty()) {
      fibers.clear();
      throw std::runtime_error(std::exchange(error, {}));
    }
  }
}

void fail(const std::string& message, Here here) {
  std::ostringstream text;
  text << where(here) << ": block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z
       << "), thread " << self().rank << ": " << message;
  error = text.str();
  go_on_with(nullptr);
  __builtin_unreachable();
}

void check_aligned(const void* at, size_t alignment, Here here) {
  if (reinterpret_cast<uintptr_t>(at) % alignment == 0) return;
  fail("the address is no multiple of " + std::to_string(alignment), here);
}

void check_shared(const void* at, size_t bytes, size_t alignment, Here here) {
  const auto first = reinterpret_cast<uintptr_t>(shared_memory());
  const auto begin = reinterpret_cast<uintptr_t>(at);
  if (begin < first || begin + bytes > first + block->shared_bytes) {
    fail("the address is not in shared memory", here);
  }
  check_aligned(at, alignment, here);
}

void pause() {
  if (block->strict || random(64)) return;
  block->favourite = random(block->warps.size());
  go_on_with(block->choose());
}

void sleep(Queue& queue, const char* waits_for, Here here) {
  Thread& me = self();
  me.waits_for = waits_for, me.here = here;
  block->warps[me.warp()].ready &= ~(1u << me.lane());
  queue.push_back(&me);
  let_others_go_on();
}

void wake(Queue& queue) {
  for (Thread* thread : queue) {
    thread->waits_for = "";
    block->warps[thread->warp()].ready |= 1u << thread->lane();
  }
  queue.clear();
}

void later(std::function<void()> work) { block->pending.push_back(std::move(work)); }

void barrier(int id, int threads, bool wait, Here here) {
  pause();
  Barrier& at = block->barriers[id];
  const bool whole_block = threads == 0;
  if (whole_block) threads = block->threads.size();
  if (at.arrived == 0) at.threads = threads, at.here = here;
  if (at.threads != threads) fail("the barrier is already in use for another count", here);
  if (whole_block && !same_line(at.here, here)) {
    fail("divergent barrier: others are at that of " + where(at.here), here);
  }
  if (++at.arrived == threads) {
    at.arrived = 0;
    wake(at.queue);
  } else if (wait) {
    sleep(at.queue, "a barrier", here);
  }
}

Meeting* join(void* part, const char* what, Here here) {
  pause();
  Thread& me = self();
  Meeting& at = block->warps[me.warp()].meeting;
  if (at.arrived == 0) at.what = what, at.here = here;
  if (std::strcmp(at.what, what) || !same_line(at.here, here)) {
    fail(std::string("divergent ") + what + ": others are at " + where(at.here), here);
  }
  at.parts[me.lane()] = part;
  if (++at.arrived == kWarp) {
    at.arrived = 0;
    return &at;
  }
  sleep(at.queue, what, here);
  return nullptr;
}

}  // namespace emulator
