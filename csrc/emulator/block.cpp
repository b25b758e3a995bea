#include <cstring>
#include <new>
#include <sstream>
#include <utility>

#include "emulator.h"

namespace emulator {
namespace {

constexpr std::align_val_t kSharedAlignment{1024};

}  // namespace

void FreeAligned::operator()(unsigned char* memory) const {
  operator delete[](memory, kSharedAlignment);
}

Block::Block(int rank, uint3 index, dim3 size, size_t bytes)
    : rank(rank), index(index), shared_bytes(bytes), left(size.x * size.y * size.z) {
  threads.reserve(left);
  for (int i = 0; i < left; ++i) {
    const unsigned n = i;
    const uint3 index{n % size.x, n / size.x % size.y, n / size.x / size.y};
    threads.push_back(
        {this, nullptr, i, index, "", Here::current(), false, {}, {}, false, {}, {}, {}, {}});
    if (i % kWarp == 0) warps.push_back({&threads[i], 0, {}});
    warps.back().ready |= 1u << i % kWarp;
  }
  // No byte more than asked for: AddressSanitizer sees an access behind it.
  shared.reset(new (kSharedAlignment) unsigned char[bytes]);
  std::memset(shared.get(), kNaN, bytes);
  hopper.shared.resize(bytes, kNaN);
  hopper.products.resize(warps.size());
  hopper.sums.resize(warps.size());
  hopper.readers.resize(warps.size());
  race::begin(*this);
}

std::string Block::name() const {
  std::ostringstream text;
  text << "block (" << index.x << ", " << index.y << ", " << index.z << ")";
  return text.str();
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

Hopper& hopper() { return self().block->hopper; }

unsigned char* shared_memory() { return self().block->shared.get(); }

uint32_t shared_address(const void* shared) {
  return static_cast<const unsigned char*>(shared) - shared_memory();
}

int lane() { return self().lane(); }

int cluster_rank() { return self().block->rank; }

void read_in(int block, const void* at, void* to, size_t bytes, Here here) {
  pause();
  check_shared(at, bytes, bytes, here);
  const unsigned char* const there = peer(block, here).at(at);
  race::read(there, bytes, here);
  std::memcpy(to, there, bytes);
}

std::string where(Here here) {
  const std::string file = here.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(here.line());
}

void check_aligned(const void* at, size_t alignment, Here here) {
  if (reinterpret_cast<uintptr_t>(at) % alignment == 0) return;
  fail("the address is no multiple of " + std::to_string(alignment), here);
}

void check_shared(const void* at, size_t bytes, size_t alignment, Here here) {
  const auto first = reinterpret_cast<uintptr_t>(shared_memory());
  const auto begin = reinterpret_cast<uintptr_t>(at);
  if (begin < first || begin + bytes > first + self().block->shared_bytes) {
    fail("the address is not in shared memory", here);
  }
  check_aligned(at, alignment, here);
}

}  // namespace emulator
