// Each primitive by itself, on any data: what the emulator makes of it is to be what a GPU makes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../dispatch.h"

namespace shiftmlp {

struct Conformance {
  const void* a;
  const void* b;  // or null
  void* out;
};

// Fragments of 1, 2 or 4 matrices: out[lane][i] from rows a[32][8] of 16 bits, and the opposite.
void launch_ldmatrix(const Conformance& p, int count, bool transpose, cudaStream_t stream);
void launch_stmatrix(const Conformance& p, int count, bool transpose, cudaStream_t stream);

// out[16][8] = a[16][16] b[8][16]^T in float16 or bfloat16; = a[16][8] b[8][8] in TF32.
void launch_mma(const Conformance& p, DType dtype, cudaStream_t stream);
void launch_mma_tf32(const Conformance& p, cudaStream_t stream);

// out[0][i] = 2^a[i], out[1][i] = 1 / a[i] for n floats.
void launch_approximations(const Conformance& p, int n, cudaStream_t stream);

// out[lane] = a[lane], copied by cp.async in pieces of 4, 8 or 16 bytes, or 0 for every third lane.
void launch_cp_async(const Conformance& p, int bytes, cudaStream_t stream);

// out[lane ^ 1] = a[lane], of 16 bytes each.
void launch_store_global(const Conformance& p, cudaStream_t stream);

// out[0][lane]: a of lane 5; out[1]: of the lane whose number differs in bits 0 and 3.
void launch_shuffles(const Conformance& p, cudaStream_t stream);

// The box of a at a place, and the same stored to b at that place. a and b: floats, rank 2 [6][20]
// with the box [4][8], rank 3 [4][6][12] with the box [2][4][8], or rank 4 [3][4][5][8] with the
// box [2][2][3][8]; sizes as in Python.
void launch_tma(const Conformance& p, int rank, const int* at, cudaStream_t stream);

// out[64][n] = a[64][16] b[n][16]^T, operands in shared memory K-major or not. n: 24 in float16; 8,
// 24, 104, 208 or 256 in bfloat16.
void launch_wgmma(const Conformance& p, DType dtype, int n, bool k_major, bool a_through_registers,
                  cudaStream_t stream);

// out[0 ... 2 * rounds): 0, 1, 0, 1, ... written by two warpgroups that take turns.
void launch_turns(const Conformance& p, int rounds, cudaStream_t stream);

// Clusters of 4 blocks, each with 3 rows of floats a[block][3][32]. out[block]: for each row, this
// and that of the block before it in the cluster, by multicast; then out[i % 4][0][i] of the
// cluster's blocks.
void launch_cluster(const Conformance& p, int clusters, cudaStream_t stream);

// Clusters of 4 blocks, each with 3 rows of pairs of floats a[block][3][32][2]. out[block],
// likewise: the sums of these rows over the cluster, each block's read in its shared memory.
void launch_exchange(const Conformance& p, int clusters, cudaStream_t stream);

}  // namespace shiftmlp
