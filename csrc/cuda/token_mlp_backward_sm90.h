// How token_mlp's backward on sm_90a lies in shared memory, and the copies on their way into it and
// out of it.
#pragma once

#include "activation_sm90.h"
#include "token_norm_sm90.h"

namespace shiftmlp {
// What happens to a warpgroup's tile, in this order.
struct Events {
  Mbarrier normed, dy, read, x, dx;  // read: both by the products

  __device__ void init() {
    for (Mbarrier* const loaded : {&normed, &dy, &x}) mbarrier_init(*loaded, 1);
    mbarrier_init(read, kWarpgroup / 32);
    mbarrier_init(dx, kWarpgroup);
  }
};

template <class T, int kDepth, int kTokens>
struct BackwardShared {
  static constexpr int kBoxes = kDepth > 144 ? 4 : 6;  // of w1 and w2 in turns
  static_assert((kTokens + 15) / 16 * 16 <= kDepth && kDepth % 16 == 0);

  union alignas(1024) Staged {
    Line<T> lines[kChunk];  // of the hidden, or of its gradient, on their way out
    Ends<kTokens> ends;
  };
  alignas(1024) Line<T> normed[2][kDepth];
  Line<T> dy[2][kDepth];  // whose place x takes, and then dx
  Line<T> boxes[kBoxes][kDepth];
  Staged staged[2];
  Mbarrier full[kBoxes], empty[kBoxes];
  Events events[2];
  Exchange exchange;  // behind this struct is b1

  __device__ void init(int cluster) {
    for (int i = 0; i < kBoxes; ++i) {
      mbarrier_init(full[i], 1);
      mbarrier_init(empty[i], cluster * kConsumers / 32);
    }
    for (Events& of_group : events) of_group.init();
    exchange.init(cluster);
  }
  __device__ float* b1() { return reinterpret_cast<float*>(this + 1); }

  __device__ void wait(int box) { mbarrier_wait(full[box % kBoxes], box / kBoxes % 2); }
  // By all warps of both warpgroups, to all blocks of the cluster.
  __device__ void hand_back(int box, int cluster) {
    const int lane = threadIdx.x % 32;
    if (lane < cluster) mbarrier_arrive_in(lane, empty[box % kBoxes]);
  }
};

__host__ __device__ inline bool has_norm(const TokenMlpBackwardSm90Params& p) {
  return p.mean || p.norm_weight.data || p.norm_bias.data;
}

// Calls f(image, turn) for the images of a cluster. Its blocks have the channels of each, and a
// warpgroup 64 of those.
template <class F>
__device__ void for_each_image(const TokenMlpBackwardSm90Params& p, int cluster, const F& f) {
  int turn = 0;
  for (int b = blockIdx.x / cluster; b < p.B; b += gridDim.x / cluster, turn ^= 1) f(b, turn);
}
__device__ inline int channel(int group) { return (2 * cluster_rank() + group) * kChannels; }

struct BackwardMaps {
  TensorMap normed, dy, x, dx, hidden, dhidden, w1, w2;
};

// Boxes of w1 and w2 in turns, for each chunk of each image. By one thread.
template <class T, int kDepth, int kTokens>
__device__ void stream(BackwardShared<T, kDepth, kTokens>& shared, const BackwardMaps& maps,
                       const TokenMlpBackwardSm90Params& p, int cluster) {
  int box = 0;
  const auto load = [&](const TensorMap& w, int j) {
    const int place = box % shared.kBoxes;
    Mbarrier& full = shared.full[place];
    mbarrier_wait(shared.empty[place], box / shared.kBoxes % 2 ^ 1);
    mbarrier_arrive_expect(full, sizeof shared.boxes[place]);
    if (box++ % cluster != cluster_rank()) return;
    if (cluster == 1) return tma_load(shared.boxes[place], w, full, {j, 0});
    tma_multicast(shared.boxes[place], w, full, {j, 0}, (1 << cluster) - 1);
  };
  for_each_image(p, cluster, [&](int, int) {
    for (int j = 0; j < p.D; j += kChunk) load(maps.w1, j), load(maps.w2, j);
  });
}

// A warpgroup's tiles. By one thread.
template <class T, int kDepth, int kTokens>
__device__ void copy(BackwardShared<T, kDepth, kTokens>& shared, const BackwardMaps& maps,
                     const TokenMlpBackwardSm90Params& p, int cluster, int group) {
  Events& events = shared.events[group];
  const int c = channel(group);
  const auto load = [&](Line<T>(&to)[kDepth], const TensorMap& map, Mbarrier& loaded, int b) {
    mbarrier_arrive_expect(loaded, sizeof to);
    tma_load(to, map, loaded, {c, 0, b});
  };
  // Ahead of its time: norm(x) is read for the last time long before the tile is finished.
  load(shared.normed[group], maps.normed, events.normed, blockIdx.x / cluster);
  for_each_image(p, cluster, [&](int b, int turn) {
    load(shared.dy[group], maps.dy, events.dy, b);
    mbarrier_wait(events.read, turn);
    const int next = b + gridDim.x / cluster;
    if (next < p.B) load(shared.normed[group], maps.normed, events.normed, next);
    if (has_norm(p)) load(shared.dy[group], maps.x, events.x, b);
    mbarrier_wait(events.dx, turn);
    tma_store(maps.dx, {c, 0, b}, shared.dy[group]);
    tma_store_commit();
    tma_store_wait_read<0>();
  });
}

}  // namespace shiftmlp
