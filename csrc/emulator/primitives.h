// What the kernels' primitives do in the emulator: all of it that a kernel's source has to read,
// and little, because each planted bug has a kernel compiled anew.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <source_location>

namespace emulator {

using Here = std::source_location;

constexpr int kMultiprocessors = 2;  // few, so that a persistent block has several tiles
constexpr int kLargeCluster = 8;  // blocks: one such cluster, or several smaller ones, run at once
int capability();                 // of the device that is played, 10 * major + minor

// Calls kernel(arguments) for every thread of the grid, whose blocks run one after another but for
// those of a cluster. Throws std::runtime_error with what went wrong.
void run(int cluster, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(const void*),
         const void* arguments);

// The dynamic shared memory of the running block, and a place in it as the hardware numbers it.
unsigned char* shared_memory();
uint32_t shared_address(const void* shared);

int lane();

void check_aligned(const void* at, size_t alignment, Here here);

// Joins a barrier of the block; with `wait` false only arrives. `threads` of 0: the whole block.
void barrier(int id, int threads, bool wait, Here here);
void warp_barrier(Here here);
void cluster_barrier(Here here);
int cluster_rank();  // of the running block
// Copies what stands at this place in another block of the cluster.
void read_in(int block, const void* at, void* to, size_t bytes, Here here);

// Replaces the value by that of lane `source`, modulo 32.
void shuffle(void* value, size_t bytes, int source, Here here);

void cp_async(void* shared, const void* global, int bytes, bool inside, Here here);
void cp_async_commit();
void cp_async_wait(size_t groups);

void ldmatrix(uint32_t* to, const void* row, int count, bool transpose, Here here);

// T is __nv_bfloat16 or __half, here and below.
template <class T>
void mma(float* d, const uint32_t* a, const uint32_t* b, Here here);
void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Here here);
uint32_t to_tf32(float value);
float flushed(float value);  // without denormal numbers

void async_proxy_fence();

void mbarrier_init(const void* at, int arrivals, Here here);
void mbarrier_arrive(const void* at, int bytes, Here here);
void mbarrier_arrive_in(int block, const void* at, Here here);
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
void tma_multicast(void* shared, const TensorMap& map, const void* mbarrier, const int* at,
                   int rank, uint32_t blocks, Here here);
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
