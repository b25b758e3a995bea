#include <array>
#include <cstring>
#include <limits>

#include "emulator.h"

namespace emulator {
namespace {

// Where in shared memory element (row, k) of an operand lies, row of m or n.
uint32_t place(uint64_t descriptor, bool k_major, int row, int k) {
  const auto field = [descriptor](int shift) { return (descriptor >> shift & 0x3fff) << 4; };
  const uint32_t start = field(0), columns = field(16), rows = field(32);
  return swizzle_128(k_major
                         ? start + row / 8 * rows + row % 8 * 128 + k * 2
                         : start + row / 64 * columns + row % 64 * 2 + k / 8 * rows + k % 8 * 128);
}

template <class T>
float element(uint64_t descriptor, bool k_major, int row, int k) {
  T value;
  std::memcpy(&value, &hopper().shared[place(descriptor, k_major, row, k)], sizeof value);
  return value;
}

// The warp's product reads `count` rows of an operand, by 8 elements that lie side by side.
void read_operand(uint64_t descriptor, bool k_major, int first, int count, Here here) {
  if (!race::looks) return;
  const race::Actor reader = hopper().readers[self().warp()];
  const race::Clock known = race::known_to_warp();
  const int down = k_major ? 1 : 8, along = k_major ? 8 : 1;
  for (int row = first; row < first + count; row += down) {
    for (int k = 0; k < 16; k += along) {
      const uint32_t at = place(descriptor, k_major, row, k);
      race::read(reader, known, shared_memory() + at, 16, here);
    }
  }
}

// Queues the warp's rows of a product, a(row, k) by b. The sums are NaN until waited for.
template <class T, class Part, class A>
void queue_product(Part** lanes, int n, uint64_t b, bool k_major_b, bool accumulate, const A& a,
                   Here here) {
  const int warp = self().warp(), registers = n / 2;
  std::array<float*, kWarp> d;
  for (int lane = 0; lane < kWarp; ++lane) d[lane] = lanes[lane]->d;
  read_operand(b, k_major_b, 0, n, here);
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
    double a_columns[16][16];
    for (int i = 0; i < 256; ++i) a_columns[i % 16][i / 16] = a(i / 16, i % 16);
    for (int column = 0; column < n; ++column) {
      float* values[16];
      double exact[16];
      for (int row = 0; row < 16; ++row) {
        const int place = column / 8 * 4 + row / 8 * 2 + column % 2;
        values[row] = &sums.values[lane_of(row, column) * registers + place];
        exact[row] = accumulate ? *values[row] : 0.0;
      }
      for (int k = 0; k < 16; ++k) {
        const double b_at = element<T>(b, k_major_b, column, k);
        for (int row = 0; row < 16; ++row) exact[row] += a_columns[k][row] * b_at;
      }
      for (int row = 0; row < 16; ++row) *values[row] = static_cast<float>(exact[row]);
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

void stmatrix(void* row, const uint32_t* from, int count, bool transpose, Here here) {
  struct Part {
    const uint32_t* from;
    void* row;
  } part{from, row};
  if (self().lane() < 8 * count) {
    check_shared(row, 16, 16, here);
    race::write(row, 16, here);
  }
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
    read_operand(a, k_major_a, first_row, 16, here);
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
    std::array<const uint32_t*, kWarp> registers;  // whose words count when the product is made
    for (int lane = 0; lane < kWarp; ++lane) registers[lane] = lanes[lane]->a;
    const auto a_at = [registers](int row, int k) {
      return half_of<T>(registers[lane_of(row, k)][k / 8 * 2 + row / 8], k % 2);
    };
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
  const auto commit = [](Thread** lanes) {
    hopper().products[lanes[0]->warp()].commit();
    ++hopper().readers[lanes[0]->warp()].time;
  };
  collective("wgmma_commit", self(), commit, here);
}

void wgmma_wait(size_t groups, Here here) {
  const auto wait = [groups](Thread** lanes) {
    hopper().products[lanes[0]->warp()].wait(groups);
    const race::Actor reader = hopper().readers[lanes[0]->warp()];
    for (int lane = 0; lane < kWarp; ++lane) race::pass(reader, groups, lanes[lane]->seen);
  };
  collective("wgmma_wait", self(), wait, here);
  self().fenced = false;
}

}  // namespace emulator
