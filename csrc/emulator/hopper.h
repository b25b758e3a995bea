// What the primitives of sm_90a do in the emulator.
#pragma once

#include "warp.h"

namespace emulator {

// 16-byte words of 128-byte rows change places with the number of the row, as TMA and wgmma
// swizzle.
inline uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

void async_proxy_fence();

void mbarrier_init(const void* at, int arrivals, Here here);
void mbarrier_arrive(const void* at, int bytes, Here here);
void mbarrier_wait(const void* at, int parity, Here here);

struct TensorMap {
  unsigned char* data;
  int item, rank;
  int64_t sizes[4], strides[4];  // in elements and in bytes; 1 and 0 beyond the rank
  int box[4];
  bool swizzle;

  int bytes() const { return item * box[0] * box[1] * box[2] * box[3]; }
};
// Throws std::invalid_argument for what the hardware does not take.
TensorMap tensor_map(const void* data, int item, int rank, const int64_t* sizes,
                     const int64_t* strides, const int* box, bool swizzle);

void tma_load(void* shared, const TensorMap& map, const void* mbarrier, const int* at, int rank,
              Here here);
void tma_store(const TensorMap& map, const int* at, int rank, const void* shared, Here here);
void tma_store_commit();
void tma_store_wait_read(size_t groups);

void stmatrix(void* row, const uint32_t* from, int count, bool transpose, Here here);

// Operands in shared memory are descriptors, of which `k_major` says what runs along a row.
template <class T>
void wgmma(float* d, int n, uint64_t a, bool k_major_a, uint64_t b, bool k_major_b, bool accumulate,
           Here here);
template <class T>
void wgmma(float* d, int n, const uint32_t* a, uint64_t b, bool k_major_b, bool accumulate,
           Here here);
void wgmma_fence();
void wgmma_commit(Here here);
void wgmma_wait(size_t groups, Here here);

}  // namespace emulator
