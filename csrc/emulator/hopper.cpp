#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "emulator.h"

namespace emulator {
namespace {

// 16-byte words of 128-byte rows change places with the number of the row, as TMA and wgmma
// swizzle.
uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

MbarrierState& state_of(const void* mbarrier, Here here) {
  const auto found = hopper().mbarriers.find(mbarrier);
  if (found == hopper().mbarriers.end()) fail("this mbarrier was never initialised", here);
  return found->second;
}

void end_phase_if_complete(MbarrierState& state) {
  if (state.missing != 0 || state.bytes != 0) return;
  state.missing = state.arrivals;
  state.phase ^= 1;
  wake(state.queue);
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

std::array<int, 4> whole_place(const TensorMap& map, const int* at, int rank, const void* shared,
                               Here here) {
  if (rank != map.rank) fail("the tensor map is of another number of dimensions", here);
  check_shared(shared, map.bytes(), 128, here);
  std::array<int, 4> place{};
  std::copy_n(at, rank, place.begin());
  return place;
}

// Element (row, k) of an operand in shared memory, row of m or n.
template <class T>
float element(uint64_t descriptor, bool k_major, int row, int k) {
  const auto field = [descriptor](int shift) { return (descriptor >> shift & 0x3fff) << 4; };
  const uint32_t start = field(0), columns = field(16), rows = field(32);
  const uint32_t address =
      k_major ? start + row / 8 * rows + row % 8 * 128 + k * 2
              : start + row / 64 * columns + row % 64 * 2 + k / 8 * rows + k % 8 * 128;
  T value;
  std::memcpy(&value, &hopper().shared[swizzle_128(address)], sizeof value);
  return value;
}

// Queues the warp's rows of a product, a(row, k) by b. The sums are NaN until waited for.
template <class T, class Part, class A>
void queue_product(Part** lanes, int n, uint64_t b, bool k_major_b, bool accumulate, const A& a,
                   Here here) {
  const int warp = self().warp(), registers = n / 2;
  std::array<float*, kWarp> d;
  for (int lane = 0; lane < kWarp; ++lane) d[lane] = lanes[lane]->d;
  auto& all_sums = hopper().sums[warp];
  Sums& sums = all_sums[d[0]];
  if (sums.products++ == 0) {
    sums.values.clear();
    for (float* values : d) {
      sums.values.insert(sums.values.end(), values, values + registers);
      std::fill_n(values, registers, std::numeric_limits<float>::quiet_NaN());
    }
  } else if (sums.values.size() != size_t(kWarp * registers)) {
    fail("the same sums have products of another width under way", here);
  }
  hopper().products[warp].add([=, &all_sums] {
    Sums& sums = all_sums[d[0]];
    double a_rows[16][16];
    for (int i = 0; i < 256; ++i) a_rows[i / 16][i % 16] = a(i / 16, i % 16);
    for (int column = 0; column < n; ++column) {
      double b_column[16];
      for (int k = 0; k < 16; ++k) b_column[k] = element<T>(b, k_major_b, column, k);
      for (int row = 0; row < 16; ++row) {
        const int place = column / 8 * 4 + row / 8 * 2 + column % 2;
        float& value = sums.values[lane_of(row, column) * registers + place];
        double sum = accumulate ? value : 0.0;
        for (int k = 0; k < 16; ++k) sum += a_rows[row][k] * b_column[k];
        value = static_cast<float>(sum);
      }
    }
    if (--sums.products == 0) {
      for (int lane = 0; lane < kWarp; ++lane) {
        std::copy_n(sums.values.begin() + lane * registers, registers, d[lane]);
      }
    }
  });
}

void check_product(uint64_t operand, Here here) {
  if (!self().fenced) fail("wgmma without a fence since the registers were last used", here);
  if (operand >> 62 != 1) fail("wgmma knows operands with the 128-byte swizzle only", here);
}

}  // namespace

void async_proxy_fence() {
  auto& seen = hopper().shared;
  std::memcpy(seen.data(), shared_memory(), seen.size());
}

void mbarrier_init(const void* at, int arrivals, Here here) {
  check_shared(at, 8, 8, here);
  hopper().mbarriers[at] = {arrivals, arrivals, 0, 0, {}};
}

void mbarrier_arrive(const void* at, int bytes, Here here) {
  pause();
  MbarrierState& state = state_of(at, here);
  if (state.missing == 0) fail("this phase of the mbarrier waits for no more arrivals", here);
  --state.missing;
  state.bytes += bytes;
  end_phase_if_complete(state);
}

void mbarrier_wait(const void* at, int parity, Here here) {
  pause();
  MbarrierState& state = state_of(at, here);
  while (state.phase == parity) sleep(state.queue, "an mbarrier", here);
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
  MbarrierState& state = state_of(mbarrier, here);
  const uint32_t address = shared_address(shared);
  unsigned char* const memory = shared_memory();
  auto& seen = hopper().shared;
  std::memset(shared, kNaN, map.bytes());
  std::memset(&seen[address], kNaN, map.bytes());
  later([=, &state, &seen, map = map] {
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

void tma_store(const TensorMap& map, const int* at, int rank, const void* shared, Here here) {
  pause();
  const auto place = whole_place(map, at, rank, shared, here);
  const uint32_t address = shared_address(shared);
  self().here = here;
  self().stores.add([=, map = map] {
    for_each_element(map, place, address, [&](unsigned char* to, uint32_t from) {
      if (to) std::memcpy(to, &hopper().shared[from], map.item);
    });
  });
}

void tma_store_commit() { self().stores.commit(); }

void tma_store_wait_read(size_t groups) {
  self().stores.wait(groups);
  pause();
}

void stmatrix(void* row, const uint32_t* from, int count, bool transpose, Here here) {
  struct Part {
    const uint32_t* from;
    void* row;
  } part{from, row};
  if (self().lane() < 8 * count) check_shared(row, 16, 16, here);
  const auto store = [&](Part** lanes) {
    for (int i = 0; i < count; ++i) {
      uint16_t matrix[8][8];
      for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, q = lane % 4 * 2;
        const uint32_t word = lanes[lane]->from[i];
        (transpose ? matrix[q][g] : matrix[g][q]) = word & 0xffff;
        (transpose ? matrix[q + 1][g] : matrix[g][q + 1]) = word >> 16;
      }
      for (int r = 0; r < 8; ++r) std::memcpy(lanes[8 * i + r]->row, matrix[r], 16);
    }
  };
  collective("stmatrix", part, store, here);
}

template <class T>
void wgmma(float* d, int n, uint64_t a, bool k_major_a, uint64_t b, bool k_major_b, bool accumulate,
           Here here) {
  struct Part {
    float* d;
  } part{d};
  check_product(a, here);
  check_product(b, here);
  const int first_row = self().warp() % 4 * 16;
  const auto a_at = [=](int row, int k) { return element<T>(a, k_major_a, first_row + row, k); };
  const auto queue = [&](Part** lanes) {
    queue_product<T>(lanes, n, b, k_major_b, accumulate, a_at, here);
  };
  collective("wgmma", part, queue, here);
}

template <class T>
void wgmma(float* d, int n, const uint32_t* a, uint64_t b, bool k_major_b, bool accumulate,
           Here here) {
  struct Part {
    float* d;
    const uint32_t* a;
  } part{d, a};
  check_product(b, here);
  const auto queue = [&](Part** lanes) {
    std::array<std::array<float, 16>, 16> rows;
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        const uint32_t word = lanes[lane_of(row, k)]->a[k / 8 * 2 + row / 8];
        rows[row][k] = half_of<T>(word, k % 2);
      }
    }
    const auto a_at = [rows](int row, int k) { return rows[row][k]; };
    queue_product<T>(lanes, n, b, k_major_b, accumulate, a_at, here);
  };
  collective("wgmma", part, queue, here);
}

#define INSTANTIATE(T)                                                             \
  template void wgmma<T>(float*, int, uint64_t, bool, uint64_t, bool, bool, Here); \
  template void wgmma<T>(float*, int, const uint32_t*, uint64_t, bool, bool, Here);
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

void wgmma_fence() { self().fenced = true; }

void wgmma_commit(Here here) {
  int nothing = 0;
  collective(
      "wgmma_commit", nothing, [](int**) { hopper().products[self().warp()].commit(); }, here);
}

void wgmma_wait(size_t groups, Here here) {
  int nothing = 0;
  collective(
      "wgmma_wait", nothing, [groups](int**) { hopper().products[self().warp()].wait(groups); },
      here);
  self().fenced = false;
}

}  // namespace emulator
