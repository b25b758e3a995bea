#include <bit>
#include <cmath>
#include <cstring>

#include "emulator.h"

namespace emulator {
namespace {

struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

// d += a b, 16 x kDepth by kDepth x 8. One rounding of an exact sum: the hardware's order of
// addition is not documented, and no test may lean on it.
template <int kDepth, class A, class B>
void multiply(Fragments** lanes, const A& a_at, const B& b_at) {
  double b[kDepth][8];
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < 8; ++column) b[k][column] = b_at(k, column);
  }
  for (int row = 0; row < 16; ++row) {
    float* d[8];
    double sums[8];
    for (int column = 0; column < 8; ++column) {
      d[column] = &lanes[lane_of(row, column)]->d[row / 8 * 2 + column % 2];
      sums[column] = *d[column];
    }
    for (int k = 0; k < kDepth; ++k) {
      const double a = a_at(row, k);
      for (int column = 0; column < 8; ++column) sums[column] += a * b[k][column];
    }
    for (int column = 0; column < 8; ++column) *d[column] = static_cast<float>(sums[column]);
  }
}

}  // namespace

void warp_barrier(Here here) {
  const auto meet = [](Thread** lanes) {
    race::Clock all;
    for (int lane = 0; lane < kWarp; ++lane) race::release(*lanes[lane], all);
    for (int lane = 0; lane < kWarp; ++lane) race::acquire(*lanes[lane], all);
  };
  collective("a warp's barrier", self(), meet, here);
}

void shuffle(void* value, size_t bytes, int source, Here here) {
  struct Part {
    void* value;
    int source;
  } part{value, source % kWarp};
  const auto exchange = [bytes](Part** lanes) {
    unsigned char values[kWarp][8];
    for (int lane = 0; lane < kWarp; ++lane) std::memcpy(values[lane], lanes[lane]->value, bytes);
    for (int lane = 0; lane < kWarp; ++lane) {
      std::memcpy(lanes[lane]->value, values[lanes[lane]->source], bytes);
    }
  };
  collective("a shuffle", part, exchange, here);
}

void cp_async(void* shared, const void* global, int bytes, bool inside, Here here) {
  pause();
  check_shared(shared, bytes, bytes, here);
  check_aligned(global, bytes, here);
  race::write(shared, bytes, here);
  std::memset(shared, kNaN, bytes);
  self().here = here;
  self().copies.add([=] {
    race::write(shared, bytes, here);
    if (inside) {
      race::read(global, bytes, here);
      std::memcpy(shared, global, bytes);
    } else {
      std::memset(shared, 0, bytes);
    }
  });
}

void cp_async_commit() { self().copies.commit(); }

void cp_async_wait(size_t groups) {
  self().copies.wait(groups);
  pause();
}

void ldmatrix(uint32_t* to, const void* row, int count, bool transpose, Here here) {
  struct Part {
    uint32_t* to;
    const void* row;
  } part{to, row};
  if (self().lane() < 8 * count) {
    check_shared(row, 16, 16, here);
    race::read(row, 16, here);
  }
  const auto load = [&](Part** lanes) {
    for (int i = 0; i < count; ++i) {
      uint16_t matrix[8][8];
      for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], lanes[8 * i + r]->row, 16);
      for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, q = lane % 4 * 2;
        const uint32_t low = transpose ? matrix[q][g] : matrix[g][q];
        const uint32_t high = transpose ? matrix[q + 1][g] : matrix[g][q + 1];
        lanes[lane]->to[i] = low | high << 16;
      }
    }
  };
  collective("ldmatrix", part, load, here);
}

template <class T>
void mma(float* d, const uint32_t* a, const uint32_t* b, Here here) {
  Fragments part{d, a, b};
  const auto compute = [](Fragments** lanes) {
    const auto a_at = [lanes](int row, int k) {
      return half_of<T>(lanes[lane_of(row, k)]->a[k / 8 * 2 + row / 8], k % 2);
    };
    const auto b_at = [lanes](int k, int column) {
      return half_of<T>(lanes[lane_of(column, k)]->b[k / 8], k % 2);
    };
    multiply<16>(lanes, a_at, b_at);
  };
  collective("mma", part, compute, here);
}
template void mma<__nv_bfloat16>(float*, const uint32_t*, const uint32_t*, Here);
template void mma<__half>(float*, const uint32_t*, const uint32_t*, Here);

void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Here here) {
  Fragments part{d, a, b};
  const auto compute = [](Fragments** lanes) {
    const auto exact = [](uint32_t word) { return std::bit_cast<float>(word & ~0x1fffu); };
    const auto a_at = [&](int row, int k) {
      return exact(lanes[row % 8 * 4 + k % 4]->a[k / 4 * 2 + row / 8]);
    };
    const auto b_at = [&](int k, int column) { return exact(lanes[column * 4 + k % 4]->b[k / 4]); };
    multiply<8>(lanes, a_at, b_at);
  };
  collective("mma", part, compute, here);
}

uint32_t to_tf32(float value) {
  const auto word = std::bit_cast<uint32_t>(value);
  return value - value == 0 ? (word + 0x1000) & ~0x1fffu : word;
}

float flushed(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

}  // namespace emulator
