#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "emulator.h"

namespace emulator {
namespace {

MbarrierState& state_of(Block& block, const void* mbarrier, Here here) {
  const auto found = block.hopper.mbarriers.find(block.at(mbarrier));
  if (found == block.hopper.mbarriers.end()) fail("this mbarrier was never initialised", here);
  return found->second;
}

void end_phase_if_complete(MbarrierState& state) {
  if (state.missing != 0 || state.bytes != 0) return;
  ++state.loads.time;
  race::pass(state.loads, 0, state.brought);
  state.ended = state.brought;
  state.missing = state.arrivals;
  state.phase ^= 1;
  wake(state.queue);
}

void arrive(MbarrierState& state, int bytes, Here here) {
  if (state.missing == 0) fail("this phase of the mbarrier waits for no more arrivals", here);
  --state.missing;
  state.bytes += bytes;
  end_phase_if_complete(state);
}

// Calls f(place in the tensor or nullptr outside of it, offset in the box) for each element.
template <class F>
void for_each_element(const TensorMap& map, const std::array<int, 4>& at, uint32_t address,
                      const F& f) {
  uint32_t next = address;
  for (int l = 0; l < map.box[3]; ++l) {
    for (int k = 0; k < map.box[2]; ++k) {
      for (int j = 0; j < map.box[1]; ++j) {
        for (int i = 0; i < map.box[0]; ++i, next += map.item) {
          const int64_t place[] = {at[0] + i, at[1] + j, at[2] + k, at[3] + l};
          unsigned char* element = map.data;
          for (int d = 0; d < 4; ++d) {
            const bool inside = element && 0 <= place[d] && place[d] < map.sizes[d];
            element = inside ? element + place[d] * map.strides[d] : nullptr;
          }
          f(element, map.swizzle ? swizzle_128(next) : next);
        }
      }
    }
  }
}

// Calls access(element) for each in the tensor, if races are looked for.
template <class F>
void race_elements(const TensorMap& map, const std::array<int, 4>& at, const F& access) {
  if (!race::looks) return;
  for_each_element(map, at, 0, [&](const void* element, uint32_t) {
    if (element) access(element);
  });
}

std::array<int, 4> whole_place(const TensorMap& map, const int* at, int rank, const void* shared,
                               Here here) {
  if (rank != map.rank) fail("the tensor map is of another number of dimensions", here);
  check_shared(shared, map.bytes(), 128, here);
  std::array<int, 4> place{};
  std::copy_n(at, rank, place.begin());
  return place;
}

// Both are the places in the block as they are in the running thread's.
void start_load(Block& block, const void* shared, const TensorMap& map, const void* mbarrier,
                const std::array<int, 4>& place, Here here) {
  MbarrierState& state = state_of(block, mbarrier, here);
  const uint32_t address = shared_address(shared);
  unsigned char* const memory = block.shared.get();
  const race::Clock& known = self().seen;
  race::write(state.loads, known, memory + address, map.bytes(), here);
  race_elements(map, place,
                [&](const void* from) { race::read(state.loads, known, from, map.item, here); });
  auto& seen = block.hopper.shared;
  std::memset(memory + address, kNaN, map.bytes());
  std::memset(&seen[address], kNaN, map.bytes());
  later(block, [=, &state, &seen, map = map] {
    for_each_element(map, place, address, [&](const unsigned char* from, uint32_t to) {
      for (unsigned char* copy : {memory, seen.data()}) {
        if (from) {
          std::memcpy(copy + to, from, map.item);
        } else {
          std::memset(copy + to, 0, map.item);
        }
      }
    });
    state.bytes -= map.bytes();
    end_phase_if_complete(state);
  });
}

}  // namespace

void async_proxy_fence() {
  auto& seen = hopper().shared;
  std::memcpy(seen.data(), shared_memory(), seen.size());
}

void mbarrier_init(const void* at, int arrivals, Here here) {
  check_shared(at, 8, 8, here);
  hopper().mbarriers[at] = {arrivals, arrivals, 0, 0, {}, race::another("a TMA load"), {}, {}};
}

void mbarrier_arrive(const void* at, int bytes, Here here) {
  pause();
  MbarrierState& state = state_of(*self().block, at, here);
  race::release(self(), state.brought);
  arrive(state, bytes, here);
}

void mbarrier_arrive_in(int block, const void* at, Here here) {
  pause();
  MbarrierState& state = state_of(peer(block, here), at, here);
  race::release(self(), state.brought);
  arrive(state, 0, here);
}

void mbarrier_wait(const void* at, int parity, Here here) {
  pause();
  MbarrierState& state = state_of(*self().block, at, here);
  while (state.phase == parity) sleep(state.queue, "an mbarrier", here);
  race::acquire(self(), state.ended);
}

TensorMap tensor_map(const void* data, int item, int rank, const int64_t* sizes,
                     const int64_t* strides, const int* box, bool swizzle) {
  TensorMap map{};
  map.data = static_cast<unsigned char*>(const_cast<void*>(data));
  map.item = item, map.rank = rank, map.swizzle = swizzle;
  bool fits = reinterpret_cast<uintptr_t>(data) % 16 == 0 && box[0] * item % 16 == 0;
  if (swizzle) fits = fits && box[0] * item == 128;  // less is legal, but nobody needs it
  for (int i = 0; i < 4; ++i) {
    map.sizes[i] = i < rank ? sizes[i] : 1;
    map.box[i] = i < rank ? box[i] : 1;
    map.strides[i] = i == 0 ? item : i < rank ? strides[i - 1] * item : 0;
    fits = fits && map.sizes[i] >= 1 && 1 <= map.box[i] && map.box[i] <= 256;
    fits = fits && (i == 0 || (map.strides[i] % 16 == 0 && map.strides[i] < int64_t{1} << 40));
  }
  if (!fits) throw std::invalid_argument("no TMA for this tensor");
  return map;
}

void tma_load(void* shared, const TensorMap& map, const void* mbarrier, const int* at, int rank,
              Here here) {
  pause();
  const auto place = whole_place(map, at, rank, shared, here);
  start_load(*self().block, shared, map, mbarrier, place, here);
}

void tma_multicast(void* shared, const TensorMap& map, const void* mbarrier, const int* at,
                   int rank, uint32_t blocks, Here here) {
  pause();
  const auto place = whole_place(map, at, rank, shared, here);
  for (int i = 0; i < 16; ++i) {
    if (blocks >> i & 1) start_load(peer(i, here), shared, map, mbarrier, place, here);
  }
}

void tma_store(const TensorMap& map, const int* at, int rank, const void* shared, Here here) {
  pause();
  const auto place = whole_place(map, at, rank, shared, here);
  const uint32_t address = shared_address(shared);
  Thread& me = self();
  if (me.reader.number == 0) {
    me.reader = race::another("a TMA store"), me.writer = race::another("a TMA store");
  }
  race::read(me.reader, me.seen, shared, map.bytes(), here);
  race_elements(map, place,
                [&](const void* to) { race::write(me.writer, me.seen, to, map.item, here); });
  me.here = here;
  me.stores.add([=, map = map] {
    for_each_element(map, place, address, [&](unsigned char* to, uint32_t from) {
      if (to) std::memcpy(to, &hopper().shared[from], map.item);
    });
  });
}

void tma_store_commit() {
  self().stores.commit();
  ++self().reader.time;
}

void tma_store_wait_read(size_t groups) {
  self().stores.wait(groups);
  race::pass(self().reader, groups, self().seen);
  pause();
}

}  // namespace emulator
