// The primitives of cluster.h.
#include "../cuda/cluster.h"
#include "conformance.h"

namespace shiftmlp {
namespace {

constexpr int kCluster = 4, kRounds = 3;

__global__ void cluster_kernel(const __grid_constant__ TensorMap rows, float* out) {
  struct Shared {
    alignas(128) float rows[2][32];
    Mbarrier full, empty;
  };
  auto& shared = shared_memory<Shared>();
  const int rank = cluster_rank(), next = (rank + 1) % kCluster, lane = threadIdx.x;
  const int block = blockIdx.x, place = rank % 2;
  const auto at = [out, lane](int block, int line) -> float& {
    return out[(block * (2 * kRounds + 1) + line) * 32 + lane];
  };
  if (lane == 0) {
    mbarrier_init(shared.full, 1);
    mbarrier_init(shared.empty, 2);
    mbarrier_init_fence();
  }
  cluster_barrier();
  for (int round = 0; round < kRounds; ++round) {
    if (lane == 0) {
      mbarrier_wait(shared.empty, round % 2 ^ 1);
      mbarrier_arrive_expect(shared.full, sizeof shared.rows);
      tma_multicast(shared.rows[place], rows, shared.full, {0, block * kRounds + round},
                    1 << rank | 1 << next);
    }
    mbarrier_wait(shared.full, round % 2);
    at(block, 2 * round) = shared.rows[place][lane];
    at(block, 2 * round + 1) = shared.rows[1 - place][lane];
    warp_barrier();
    if (lane < 2) mbarrier_arrive_in((rank + lane * (kCluster - 1)) % kCluster, shared.empty);
  }
  cluster_barrier();
  at(block, 2 * kRounds) = at(block - rank + lane % kCluster, 0);
}

__global__ void exchange_kernel(const Floats2* a, Floats2* out) {
  struct Shared {
    Floats2 rows[2][32];  // in turns: while the others read one, the next is written
    Mbarrier told;
  };
  auto& shared = shared_memory<Shared>();
  const int lane = threadIdx.x;
  if (lane == 0) {
    mbarrier_init(shared.told, kCluster);
    mbarrier_init_fence();
  }
  cluster_barrier();
  for (int round = 0; round < kRounds; ++round) {
    const int at = (blockIdx.x * kRounds + round) * 32 + lane;
    Floats2& row = shared.rows[round % 2][lane];
    row = a[at];
    warp_barrier();
    if (lane < kCluster) mbarrier_release_in(lane, shared.told);
    mbarrier_wait_in_cluster(shared.told, round % 2);
    Floats2 sum{};
    for (int block = 0; block < kCluster; ++block) {
      const Floats2 value = read_in(block, row);
      sum.first += value.first, sum.second += value.second;
    }
    out[at] = sum;
  }
  cluster_barrier();  // the others have read
}

}  // namespace

void launch_cluster(const Conformance& p, int clusters, cudaStream_t stream) {
  const int blocks = clusters * kCluster;
  const auto rows = tensor_map<float, 2>(static_cast<const float*>(p.a), {32, blocks * kRounds},
                                         {32}, {32, 1}, Swizzle::kNone);
  launch_clusters(cluster_kernel, kCluster, dim3(blocks), dim3(32), 512, stream, rows,
                  static_cast<float*>(p.out));
}

void launch_exchange(const Conformance& p, int clusters, cudaStream_t stream) {
  launch_clusters(exchange_kernel, kCluster, dim3(clusters * kCluster), dim3(32), 1024, stream,
                  static_cast<const Floats2*>(p.a), static_cast<Floats2*>(p.out));
}

}  // namespace shiftmlp
