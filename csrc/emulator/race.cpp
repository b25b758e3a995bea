#include "race.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>
#include <unordered_map>

#include "emulator.h"
#include "fiber.h"

namespace emulator::race {
namespace {

struct Access {
  uint32_t time;  // 0: none
  uint32_t cluster;
  uint16_t actor;
  uint8_t bytes;  // those of the cell: a bit for each
  bool is_write;
  uint32_t line;      // where; 0: known by its address alone,
  const void* place;  // which is this, and otherwise this is the file's name
};

// The last accesses to 4 bytes, without those after which another one of the same kind came. Of
// more than there is place for, some: in another order of threads, others.
struct Cell {
  static constexpr int kBytes = 4, kAccesses = 4;
  Access accesses[kAccesses];
};

struct Page {
  static constexpr size_t kBytes = 1024;
  Cell cells[kBytes / Cell::kBytes];
};

struct Who {
  const char* what;
  const Thread* thread;  // or nullptr
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct {
  uintptr_t number;
  Page* page;
} recent[64];
uint32_t cluster;
std::vector<Who> actors;  // of the cluster, by number
uint32_t dropped;         // accesses for which there was no place

Cell& cell_of(uintptr_t at) {
  const uintptr_t number = at / Page::kBytes;
  auto& [kept, page] = recent[number % std::size(recent)];
  if (kept != number || !page) {
    auto& made = pages[number];
    if (!made) made = std::make_unique<Page>();
    kept = number, page = made.get();
  }
  return page->cells[at % Page::kBytes / Cell::kBytes];
}

bool comes_before(const Access& one, const Access& access, const Clock& seen) {
  if (one.cluster != access.cluster) return false;
  return one.actor == access.actor || (one.actor < seen.size() && one.time <= seen[one.actor]);
}

// Keeps the access; the one that it races with, or nullptr.
const Access* add(Cell& cell, const Access& access, const Clock& seen) {
  Access* free = nullptr;
  for (Access& one : cell.accesses) {
    if (one.time == 0) {
      if (!free) free = &one;
      continue;
    }
    const bool covers = !(one.bytes & ~access.bytes) && (access.is_write || !one.is_write);
    if (one.time == access.time && one.actor == access.actor && one.cluster == access.cluster &&
        !(access.bytes & ~one.bytes) && (one.is_write || !access.is_write)) {
      return nullptr;  // the same again
    }
    const bool before = comes_before(one, access, seen);
    if (!before && (one.bytes & access.bytes) && (one.is_write || access.is_write)) return &one;
    if (before && covers) {  // what comes after this access comes after that one
      one.time = 0;
      free = &one;
    }
  }
  for (int i = 0; !free; ++i) {  // reads go first
    Access& one = cell.accesses[dropped++ % Cell::kAccesses];
    if (!one.is_write || i == Cell::kAccesses) free = &one;
  }
  *free = access;
  return nullptr;
}

// "kernel.cu:12"
std::string place_of(const Access& access) {
  const auto name_of = [](const std::string& path) { return path.substr(path.rfind('/') + 1); };
  if (access.line) {
    return name_of(static_cast<const char*>(access.place)) + ":" + std::to_string(access.line);
  }
  Dl_info library{};
  dladdr(access.place, &library);
  const size_t next =
      static_cast<const char*>(access.place) - static_cast<const char*>(library.dli_fbase);
  std::ostringstream command;
  command << "addr2line -i -e '" << library.dli_fname << "' " << std::hex << next - 1;
  std::string place = "?";
  FILE* const answer = popen(command.str().c_str(), "r");
  if (!answer) return place;
  // Of a function and those that it was inlined in, the first whose line is known.
  char line[4096];
  while (place.ends_with('?') && std::fgets(line, sizeof line, answer)) {
    place = name_of(std::string(line, std::strcspn(line, " \n")));
  }
  pclose(answer);
  return place;
}

[[noreturn]] void report(const Access& access, const Access& other) {
  const auto does = [](const Access& one) {
    const char* const verb = one.is_write ? " writes" : " reads";
    if (one.cluster != cluster) return std::string("another block") + verb;
    const auto [what, thread] = actors[one.actor];
    std::string text = what;
    if (thread) text += " " + std::to_string(thread->rank);
    if (thread && thread->block != running->block) text += " of " + thread->block->name();
    return text + verb;
  };
  fail("race: nothing orders that " + does(access) + " here and that " + does(other) +
           " the same bytes at " + place_of(other),
       place_of(access));
}

void add(Access access, const Clock& seen, const void* at, size_t bytes) {
  auto next = reinterpret_cast<uintptr_t>(at);
  access.cluster = cluster;
  for (const uintptr_t end = next + bytes; next < end;) {
    const uintptr_t first = next % Cell::kBytes, cell_end = next - first + Cell::kBytes;
    const uintptr_t last = std::min(end, cell_end) - (next - first);
    access.bytes = (1 << last) - (1 << first);
    if (const Access* const other = add(cell_of(next), access, seen)) report(access, *other);
    next = cell_end;
  }
}

void add(Actor actor, const Clock& seen, const void* at, size_t bytes, bool is_write, Here here) {
  if (!looks) return;
  add({actor.time, 0, uint16_t(actor.number), 0, is_write, here.line(), here.file_name()}, seen, at,
      bytes);
}

// By a kernel. What lies on its stack is no other thread's business.
void plain(const void* at, size_t bytes, bool is_write, const void* from) {
  if (!running || running->fiber->has_on_its_stack(at)) return;
  const Actor actor = running->actor;
  add({actor.time, 0, uint16_t(actor.number), 0, is_write, 0, from}, running->seen, at, bytes);
}

// That all has happened that the actor did up to this time.
void know(Clock& to, uint32_t number, uint32_t time) {
  if (to.size() <= number) to.resize(number + 1);
  to[number] = std::max(to[number], time);
}

void join(Clock& to, const Clock& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

}  // namespace

bool looks = false;

void begin_launch() {
  pages.clear();
  dropped = 0;
  std::fill(std::begin(recent), std::end(recent), std::remove_reference_t<decltype(*recent)>{});
}

void begin_cluster() {
  ++cluster;
  actors.clear();
}

void begin(Block& block) {
  if (!looks) return;
  for (Thread& thread : block.threads) {
    thread.actor = another("thread");
    actors.back().thread = &thread;
    know(thread.seen, thread.actor.number, thread.actor.time);
  }
  for (Actor& reader : block.hopper.readers) reader = another("wgmma");
  // Its memory may have been another block's before.
  for (size_t i = 0; i < block.shared_bytes; i += Cell::kBytes) {
    cell_of(reinterpret_cast<uintptr_t>(block.shared.get()) + i) = {};
  }
}

Actor another(const char* what) {
  actors.push_back({what, nullptr});
  return {uint32_t(actors.size() - 1)};
}

void release(Thread& thread, Clock& to) {
  if (!looks) return;
  join(to, thread.seen);
  know(thread.seen, thread.actor.number, ++thread.actor.time);
}

void acquire(Thread& thread, const Clock& from) { join(thread.seen, from); }

void pass(Actor actor, size_t left, Clock& to) {
  if (looks && actor.time > left + 1) know(to, actor.number, actor.time - 1 - left);
}

Clock known_to_warp() {
  const Thread* const first = running->block->warps[running->warp()].first;
  Clock known = first->seen;
  for (int lane = 1; lane < kWarp; ++lane) {
    const Clock& seen = first[lane].seen;
    if (known.size() > seen.size()) known.resize(seen.size());
    for (size_t i = 0; i < known.size(); ++i) known[i] = std::min(known[i], seen[i]);
  }
  return known;
}

void read(const void* at, size_t bytes, Here here) {
  add(running->actor, running->seen, at, bytes, false, here);
}
void write(const void* at, size_t bytes, Here here) {
  add(running->actor, running->seen, at, bytes, true, here);
}
void read(Actor actor, const Clock& seen, const void* at, size_t bytes, Here here) {
  add(actor, seen, at, bytes, false, here);
}
void write(Actor actor, const Clock& seen, const void* at, size_t bytes, Here here) {
  add(actor, seen, at, bytes, true, here);
}

}  // namespace emulator::race

// What -fsanitize=thread calls.
#define HIDDEN __attribute__((visibility("hidden")))
#define ACCESS(name, bytes, is_write)                                        \
  HIDDEN void __tsan_##name(const void* at) {                                \
    emulator::race::plain(at, bytes, is_write, __builtin_return_address(0)); \
  }
#define ACCESSES(bytes)                       \
  ACCESS(read##bytes, bytes, false)           \
  ACCESS(write##bytes, bytes, true)           \
  ACCESS(unaligned_read##bytes, bytes, false) \
  ACCESS(unaligned_write##bytes, bytes, true)
extern "C" {
HIDDEN void __tsan_init() { emulator::race::looks = true; }
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit() {}
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HIDDEN void __tsan_read_range(const void* at, size_t bytes) {
  emulator::race::plain(at, bytes, false, __builtin_return_address(0));
}
HIDDEN void __tsan_write_range(const void* at, size_t bytes) {
  emulator::race::plain(at, bytes, true, __builtin_return_address(0));
}
HIDDEN void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  emulator::race::plain(from, bytes, false, __builtin_return_address(0));
  emulator::race::plain(to, bytes, true, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
HIDDEN void* __tsan_memset(void* to, int value, size_t bytes) {
  emulator::race::plain(to, bytes, true, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}
}
