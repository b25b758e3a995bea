// What the blocks of a cluster do for one another: they run at the same time, and reach each
// other's barriers and shared memory.
#pragma once

#include <array>
#include <mutex>
#include <tuple>
#include <utility>

#include "hopper.h"

namespace shiftmlp {

constexpr int kMostBlocks = 8;  // of a cluster, that every device takes

// The number of this block in its cluster.
__device__ inline int cluster_rank() {
#ifdef __CUDACC__
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return emulator::cluster_rank();
#endif
}

// Waits for all threads of the cluster but those that have exited.
__device__ inline void cluster_barrier([[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
#else
  emulator::cluster_barrier(here);
#endif
}

// Arrives at the barrier that stands at the same place in this block of the cluster. What this
// thread wrote is not passed on (release.cluster would be a fence of the whole GPU): it tells that
// products and copies have read.
__device__ inline void mbarrier_arrive_in(int block, Mbarrier& at,
                                          [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(&at)),
      "r"(block)
      : "memory");
#else
  emulator::mbarrier_arrive_in(block, &at, here);
#endif
}

// The same, but what this thread wrote, and what it was told by others of its block, is passed on
// to who waits with mbarrier_wait_in_cluster.
__device__ inline void mbarrier_release_in(int block, Mbarrier& at,
                                           [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(
          shared_address(&at)),
      "r"(block)
      : "memory");
#else
  emulator::mbarrier_arrive_in(block, &at, here);
#endif
}

// As mbarrier_wait, for what threads of other blocks wrote before they arrived.
__device__ inline void mbarrier_wait_in_cluster(Mbarrier& at, int parity,
                                                [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(&at)),
      "r"(parity)
      : "memory");
#else
  emulator::mbarrier_wait(&at, parity, here);
#endif
}

// Two floats that stand at the same place in this block of the cluster.
struct alignas(8) Floats2 {
  float first, second;
};
__device__ inline Floats2 read_in(int block, const Floats2& at,
                                  [[maybe_unused]] Here here = Here::current()) {
  Floats2 value;
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [there];\n}"
      : "=f"(value.first), "=f"(value.second)
      : "r"(shared_address(&at)), "r"(block)
      : "memory");
#else
  emulator::read_in(block, &at, &value, sizeof value, here);
#endif
  return value;
}

// Starts the copy of a box into the same place of every block whose bit of `blocks` is set. In each
// of them, all bytes of the box count at the barrier that stands where this one does.
template <int kRank>
__device__ void tma_multicast(void* shared, const TensorMap& map, Mbarrier& barrier,
                              const int (&at)[kRank], uint16_t blocks,
                              [[maybe_unused]] Here here = Here::current()) {
#ifdef __CUDACC__
#define SHIFTMLP_TMA_MULTICAST(rank, coordinates, ...)                                         \
  asm volatile("cp.async.bulk.tensor." rank                                                    \
               ".shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0]," \
               " [%1, {" coordinates "}], [%2], %3;" ::"r"(shared_address(shared)),            \
               "l"(&map), "r"(shared_address(&barrier)), "h"(blocks), __VA_ARGS__              \
               : "memory")
  if constexpr (kRank == 2) {
    SHIFTMLP_TMA_MULTICAST("2d", "%4, %5", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    SHIFTMLP_TMA_MULTICAST("3d", "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else {
    static_assert(kRank == 4);
    SHIFTMLP_TMA_MULTICAST("4d", "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  }
#undef SHIFTMLP_TMA_MULTICAST
#else
  emulator::tma_multicast(shared, map, &barrier, at, kRank, blocks, here);
#endif
}

// The clusters of launches that were asked for: the driver takes longer to tell than to launch.
struct KnownClusters {
  using Launch = std::tuple<const void*, int, int, unsigned, size_t>;  // as it is looked for below

  std::mutex mutex;
  std::array<std::pair<Launch, int>, 128> counts{};  // the first ones; others are 0
};
inline KnownClusters known_clusters;

// How many clusters of such blocks run at the same time: none straddles two parts of the device.
template <class... Params>
int active_clusters(void (*kernel)(Params...), int cluster, dim3 block, size_t shared_bytes) {
  int device = 0;
#ifdef __CUDACC__
  cudaGetDevice(&device);
#endif
  const auto ask = [&] {
#ifdef __CUDACC__
    cudaLaunchAttribute size{};
    int count = 0;
    auto config = launch_config(kernel, cluster, dim3(cluster), block, shared_bytes, size);
    config.numAttrs = 1;  // of one block, too
    cudaOccupancyMaxActiveClusters(&count, kernel, &config);
#else
    const int count = emulator::kMultiprocessors / cluster;
#endif
    return count > 1 ? count : 1;
  };
  const KnownClusters::Launch launch{reinterpret_cast<const void*>(kernel), device, cluster,
                                     block.x, shared_bytes};
  const std::lock_guard lock(known_clusters.mutex);
  for (auto& [known, count] : known_clusters.counts) {
    if (count == 0) known = launch, count = ask();
    if (known == launch) return count;
  }
  return ask();
}

}  // namespace shiftmlp
