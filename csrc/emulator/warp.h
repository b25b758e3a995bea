// What the primitives of sm_80 do in the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "emulator.h"

namespace emulator {

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

// T is __nv_bfloat16 or __half.
template <class T>
void mma(float* d, const uint32_t* a, const uint32_t* b, Here here);
void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Here here);
uint32_t to_tf32(float value);

}  // namespace emulator
