#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
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

bool same_line(const Here& a, const Here& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

struct Pending {
  const Block* into;
  std::function<void()> work;
};

// Blocks that run at the same time. Without clusters: one.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Warp*> warps;
  Barrier barrier{};
  std::vector<Pending> pending;
  int left = 0;  // threads that have not exited

  // Either the first warp of `priority` that can go on does, so that one runs as far as it goes
  // while others starve; or a random warp does, until it waits or is preempted.
  bool strict;
  std::vector<int> priority;
  int favourite = 0;

  Cluster(int first, int count, dim3 size, size_t shared_bytes);
  Thread* choose();
  std::string report() const;
};

Cluster* cluster;
void (*kernel)(const void*);
const void* arguments;
std::string error;

// Kept from block to block. A run that failed leaves its threads where they stood: those go.
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber host;

// nullptr: with the host.
void go_on_with(Thread* thread) {
  Thread* const me = running;
  if (thread == me) return;
  running = thread;
  if (thread) threadIdx = thread->index, blockIdx = thread->block->index;
  (me ? *me->fiber : host).switch_to(thread ? *thread->fiber : host);
}

void let_others_go_on() {
  Thread* next = cluster->choose();
  if (!next) fail("deadlock: " + cluster->report(), self().here);
  go_on_with(next);
}

Warp& warp_of(const Thread& thread) { return thread.block->warps[thread.warp()]; }

void end_barrier_if_complete() {
  if (cluster->barrier.arrived == cluster->left) end(cluster->barrier);
}

void live() {
  for (;;) {
    kernel(arguments);
    Thread& me = self();
    Block& block = *me.block;
    if (!me.copies.idle()) fail("exits with copies that it never waited for", me.here);
    if (!block.hopper.products[me.warp()].idle()) fail("exits with products under way", me.here);
    if (!me.stores.idle()) fail("exits while TMA reads shared memory", me.here);
    me.exited = true;
    warp_of(me).ready &= ~(1u << me.lane());
    const auto enters = [&](const Pending& one) { return one.into == &block; };
    if (--block.left == 0 && std::ranges::any_of(cluster->pending, enters)) {
      fail("the block exits with TMA copies under way", me.here);
    }
    if (--cluster->left == 0) {
      go_on_with(nullptr);
    } else {
      end_barrier_if_complete();
      let_others_go_on();
    }
  }
}

uint3 block_index(unsigned n) {
  return {n % gridDim.x, n / gridDim.x % gridDim.y, n / gridDim.x / gridDim.y};
}

Cluster::Cluster(int first, int count, dim3 size, size_t shared_bytes) {
  race::begin_cluster();
  for (int rank = 0; rank < count; ++rank) {
    auto& block = *blocks.emplace_back(
        std::make_unique<Block>(rank, block_index(first + rank), size, shared_bytes));
    for (Warp& warp : block.warps) warps.push_back(&warp);
    for (Thread& thread : block.threads) {
      if (fibers.size() <= size_t(left)) fibers.push_back(std::make_unique<Fiber>(live));
      thread.fiber = fibers[left++].get();
    }
  }
  strict = random(2);
  priority = random_order(warps.size());
}

// Who goes on; nullptr if nobody can.
Thread* Cluster::choose() {
  const auto can = [this](int warp) { return warps[warp]->ready != 0; };
  for (;;) {
    const bool idle = std::none_of(priority.begin(), priority.end(), can);
    if (pending.empty() || !(idle || (!strict && random(8) == 0))) {
      if (idle) return nullptr;
      break;
    }
    std::swap(pending[random(pending.size())], pending.back());
    const auto work = std::move(pending.back().work);
    pending.pop_back();
    work();
  }
  if (strict) favourite = *std::find_if(priority.begin(), priority.end(), can);
  while (!can(favourite)) favourite = random(warps.size());
  const uint32_t ready = warps[favourite]->ready;
  const int first = strict ? 0 : random(kWarp);
  const int lane =
      (first + __builtin_ctz(ready >> first | ready << (kWarp - first) % kWarp)) % kWarp;
  return warps[favourite]->first + lane;
}

std::string Cluster::report() const {
  if (blocks.size() == 1) return blocks[0]->report();
  std::string text;
  for (const auto& block : blocks) {
    text += (text.empty() ? "" : "; ") + block->name() + ": " + block->report();
  }
  return text;
}

}  // namespace

void set_seed(uint64_t seed) { random_state = seed; }

void set_capability(int capability) { played = capability; }
int capability() { return played; }

Thread* running;

Block& peer(int rank, Here here) {
  if (rank >= int(cluster->blocks.size())) fail("the cluster has no such block", here);
  Block& block = *cluster->blocks[rank];
  if (block.left == 0) fail(block.name() + " of this cluster has exited", here);
  return block;
}

void run(int cluster_size, dim3 grid, dim3 size, size_t shared_bytes,
         void (*kernel_to_run)(const void*), const void* its_arguments) {
  if (grid.x % cluster_size) throw std::invalid_argument("the grid is not made of whole clusters");
  kernel = kernel_to_run, arguments = its_arguments;
  gridDim = grid, blockDim = size;
  race::begin_launch();
  for (const int i : random_order(grid.x * grid.y * grid.z / cluster_size)) {
    Cluster fresh(i * cluster_size, cluster_size, size, shared_bytes);
    cluster = &fresh;
    go_on_with(cluster->choose());
    if (!error.empty()) {
      fibers.clear();
      throw std::runtime_error(std::exchange(error, {}));
    }
  }
}

void rest() { fibers.clear(); }

void fail(const std::string& message, Here here) { fail(message, where(here)); }
void fail(const std::string& message, const std::string& place) {
  const Thread& me = self();
  error = place + ": " + me.block->name() + ", thread " + std::to_string(me.rank) + ": " + message;
  go_on_with(nullptr);
  __builtin_unreachable();
}

void pause() {
  if (cluster->strict || random(64)) return;
  cluster->favourite = random(cluster->warps.size());
  go_on_with(cluster->choose());
}

void sleep(Queue& queue, const char* waits_for, Here here) {
  Thread& me = self();
  me.waits_for = waits_for, me.here = here;
  warp_of(me).ready &= ~(1u << me.lane());
  queue.push_back(&me);
  let_others_go_on();
}

void wake(Queue& queue) {
  for (Thread* thread : queue) {
    thread->waits_for = "";
    warp_of(*thread).ready |= 1u << thread->lane();
  }
  queue.clear();
}

void end(Barrier& barrier) {
  for (Thread* thread : barrier.queue) race::acquire(*thread, barrier.brought);
  barrier.brought.clear();
  barrier.arrived = 0;
  wake(barrier.queue);
}

void later(const Block& into, std::function<void()> work) {
  cluster->pending.push_back({&into, std::move(work)});
}

void cluster_barrier(Here here) {
  pause();
  Barrier& at = cluster->barrier;
  race::release(self(), at.brought);
  if (++at.arrived == cluster->left) {
    race::acquire(self(), at.brought);
    end(at);
  } else {
    sleep(at.queue, "its cluster's barrier", here);
  }
}

void barrier(int id, int threads, bool wait, Here here) {
  pause();
  Block& block = *self().block;
  Barrier& at = block.barriers[id];
  const bool whole_block = threads == 0;
  if (whole_block) threads = block.threads.size();
  if (at.arrived == 0) at.threads = threads, at.here = here;
  if (at.threads != threads) fail("the barrier is already in use for another count", here);
  if (whole_block && !same_line(at.here, here)) {
    fail("divergent barrier: others are at that of " + where(at.here), here);
  }
  race::release(self(), at.brought);
  if (++at.arrived == threads) {
    if (wait) race::acquire(self(), at.brought);
    end(at);
  } else if (wait) {
    sleep(at.queue, "a barrier", here);
  }
}

Meeting* join(void* part, const char* what, Here here) {
  pause();
  Thread& me = self();
  Meeting& at = warp_of(me).meeting;
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
