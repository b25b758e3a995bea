// What the primitives of sm_80 do in the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "emulator.h"

namespace emulator {

constexpr uint32_t kAllLanes = 0xffffffff;

// The lane that holds element (row, column) of an 8-column matrix, two columns to a lane.
inline int lane_of(int row, int column) { return row % 8 * 4 + column % 8 / 2; }

// The first or second value of a word. T is __nv_bfloat16 or __half throughout.
template <class T>
float half_of(uint32_t word, int which) {
  T value;
  value.bits = static_cast<uint16_t>(word >> 16 * which);
  return value;
}

// As the hardware sees it: from the start of shared memory.
inline uint32_t shared_address(const void* shared) {
  return static_cast<const unsigned char*>(shared) - shared_memory();
}

void warp_barrier(uint32_t mask, Here here);

// The value that lane `source`, modulo 32, brings.
template <class T>
T shuffle(uint32_t mask, T value, int source, Here here) {
  struct Part {
    T value;
    int source;
  } part{value, source % kWarp};
  T result = value;
  const auto exchange = [&](Part** parts) {
    T values[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      if (mask >> lane & 1) values[lane] = parts[lane]->value;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const int from = parts[lane]->source;
      if (!(mask >> from & 1)) fail("a shuffle reads a lane outside of its mask", here);
      parts[lane]->value = values[from];
    }
  };
  collective(mask, "a shuffle", part, exchange, here);
  return result = part.value;
}

void cp_async(void* shared, const void* global, int bytes, bool inside, Here here);
void cp_async_commit();
void cp_async_wait(size_t groups);

void ldmatrix(uint32_t* to, const void* row, int count, bool transpose, Here here);

template <class T>
void mma(float* d, const uint32_t* a, const uint32_t* b, Here here);
void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Here here);
uint32_t to_tf32(float value);

}  // namespace emulator
