// Runs CUDA kernels on a CPU: one fiber a thread, in an order chosen to break what can be broken.
//
// A thread runs until a primitive makes it wait; the scheduler then chooses, by seed, who goes on.
// Asynchronous work lands as late as it may, fresh shared memory is NaN, and what the hardware
// leaves undefined ends the run with a message that names the line.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "primitives.h"
#include "race.h"

namespace emulator {

constexpr int kWarp = 32;
constexpr int kNaN = 0xff;  // this byte throughout is NaN in every format

// The order of threads, blocks and asynchronous work in the runs that follow.
void set_seed(uint64_t seed);

// Which device is played: at first one of compute capability 9.0. What an adapter chooses by it
// changes; what a kernel may do does not.
void set_capability(int capability);

// Gives back the stacks that are kept for the next run: a process may have but so many, for all the
// libraries with planted bugs that it has loaded.
void rest();

// Ends the run.
[[noreturn]] void fail(const std::string& message, const std::string& place);
[[noreturn]] void fail(const std::string& message, Here here);
std::string where(Here here);

struct Block;
struct Thread;
class Fiber;
using Queue = std::vector<Thread*>;

// Asynchronous work of a thread, in groups that it closes and waits for in their order. Nothing is
// done before the wait that demands it.
class Groups {
 public:
  void add(std::function<void()> work) { open_.push_back(std::move(work)); }
  void commit() { closed_.push_back(std::exchange(open_, {})); }
  void wait(size_t left) {  // until so many closed groups are left
    if (closed_.size() <= left) return;
    const auto end = closed_.end() - left;
    for (auto group = closed_.begin(); group != end; ++group) {
      for (const auto& work : *group) work();
    }
    closed_.erase(closed_.begin(), end);
  }
  bool idle() const {
    const auto empty = [](const auto& group) { return group.empty(); };
    return empty(open_) && std::all_of(closed_.begin(), closed_.end(), empty);
  }

 private:
  using Group = std::vector<std::function<void()>>;
  Group open_;
  std::vector<Group> closed_;
};

// What a thread is and has under way.
struct Thread {
  Block* block;
  Fiber* fiber;
  int rank;  // in the block
  uint3 index;
  const char* waits_for;  // and where, for the report; "" when it does not
  Here here;
  bool exited;
  Groups copies, stores;  // by cp.async and by TMA
  bool fenced;            // since it last waited for products
  race::Actor actor;
  race::Actor reader, writer;  // its TMA stores as they read, and as they write
  race::Clock seen;            // of all actors, this one included

  int lane() const { return rank % kWarp; }
  int warp() const { return rank / kWarp; }
};
extern Thread* running;  // nullptr: the host
inline Thread& self() { return *running; }

struct MbarrierState {
  int arrivals, missing, phase;
  int64_t bytes;
  Queue queue;
  race::Actor loads;
  race::Clock brought, ended;  // by all arrivals, and by those before the last phase's end
};

// The 16 rows of a warp in a sum whose products are under way.
struct Sums {
  std::vector<float> values;
  int products;
};

// What the units of sm_90 know of a block.
struct Hopper {
  std::map<const void*, MbarrierState> mbarriers;
  std::vector<unsigned char> shared;  // as TMA and wgmma see it: without what no fence published
  std::vector<Groups> products;       // by warp
  std::vector<race::Actor> readers;   // of their operands, likewise
  std::vector<std::map<const float*, Sums>> sums;  // by warp and the place of its first lane's
};
Hopper& hopper();  // of the running thread's block

struct Barrier {
  int arrived, threads;
  Here here;
  Queue queue;
  race::Clock brought;  // by those who have arrived
};

// The lanes of a warp, who must all come to the same line before any of them goes on.
struct Meeting {
  int arrived;
  const char* what;
  Here here;
  void* parts[kWarp];
  Queue queue;
};

struct Warp {
  Thread* first;
  uint32_t ready;  // lanes that can go on
  Meeting meeting;
};

struct FreeAligned {
  void operator()(unsigned char* memory) const;
};

struct Block {
  int rank;  // in its cluster
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[16] = {};
  std::unique_ptr<unsigned char[], FreeAligned> shared;
  size_t shared_bytes;
  Hopper hopper;
  int left;  // threads that have not exited

  Block(int rank, uint3 index, dim3 size, size_t shared_bytes);
  std::string name() const;
  std::string report() const;  // what its threads wait for

  // The same place of this block as in the running thread's.
  unsigned char* at(const void* its) { return shared.get() + shared_address(its); }
};
// The block of this rank in the running cluster, which must not have exited.
Block& peer(int rank, Here here);

// Fails unless [at, at + bytes) lies in shared memory, `at` a multiple of `alignment`.
void check_shared(const void* at, size_t bytes, size_t alignment, Here here);

// A point at which another warp may take over.
void pause();
// Waits until somebody wakes the queue.
void sleep(Queue& queue, const char* waits_for, Here here);
void wake(Queue& queue);
// Lets those who wait go on, and knows of no arrival any more.
void end(Barrier& barrier);
// Does `work` on a block's memory at a time of the scheduler's choice, at the latest when nobody
// else can go on.
void later(const Block& into, std::function<void()> work);

// The meeting if this lane is the last to come; otherwise waits for that one and gives nullptr.
Meeting* join(void* part, const char* what, Here here);

// Each lane brings a part, and the last one computes for all: compute(Part* parts[32]).
template <class Part, class Compute>
void collective(const char* what, Part& part, const Compute& compute, Here here) {
  Meeting* meeting = join(&part, what, here);
  if (!meeting) return;
  compute(reinterpret_cast<Part**>(meeting->parts));
  wake(meeting->queue);
}

// 16-byte words of 128-byte rows change places with the number of the row, as TMA and wgmma
// swizzle.
inline uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// The lane that holds element (row, column) of an 8-column matrix, two columns to a lane.
inline int lane_of(int row, int column) { return row % 8 * 4 + column % 8 / 2; }

// The first or second value of a word.
template <class T>
float half_of(uint32_t word, int which) {
  T value;
  value.bits = static_cast<uint16_t>(word >> 16 * which);
  return value;
}

}  // namespace emulator
