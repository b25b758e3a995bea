// token_linear is 2 * B * S * T * C operations on bytes(x) + bytes(y) of traffic, to which a
// residual that is x adds nothing: at 196 tokens 98 operations a byte. An H200's tensor cores do 206
// while its memory moves a byte (990 TFLOP/s, 4.8 TB/s), so that the floor is the memory's: 77 MB
// and 16 us for 256 images of 384 channels.
//
// So x is read once and y written once, by TMA, and weight stays in shared memory while tiles of x
// stream through a ring. The product is transposed, channels as rows and tokens as columns, for x
// has its channels dense. A warp loads, two warpgroups take turns in multiplying, each with a tile
// of its own, and put y where x was; the warp stores it.
#include <algorithm>

#include "token_linear_sm90.h"
#include "tokens_sm90.h"

namespace shiftmlp {
namespace {

constexpr int kConsumers = 2 * kWarpgroup;
constexpr int kThreads = kConsumers + kWarpgroup;  // registers are dealt to whole warpgroups

template <class T, int kDepth, int kTokens>
struct Shared {
  static constexpr int kStages = 1024 / kDepth;  // 128 KB of x at most; weight has the rest

  Line<T> x[kStages][kDepth];
  Line<T> weight[(kDepth + 63) / 64][kTokens];
  Moments moments[kStages][kDepth];
  OfToken of_tokens[kTokens];
  Mbarrier full[kStages], done[kStages];
};

struct Maps {
  TensorMap x, y;
};

// The tiles of a block, one after another; all of the same output tokens, from t on.
struct Tiles {
  int count, t;

  __device__ Tiles(const TokenLinearSm90Params& p, int tokens)
      : count((p.B * across(p) - blockIdx.x + gridDim.x - 1) / gridDim.x), t(blockIdx.y * tokens) {}

  static __device__ int across(const TokenLinearSm90Params& p) {
    return (p.C + kChannels - 1) / kChannels;
  }
};

struct Tile {
  int b, c;

  __device__ Tile(const TokenLinearSm90Params& p, int i) {
    const unsigned tile = blockIdx.x + i * gridDim.x, across = Tiles::across(p);
    b = tile / across;
    c = tile % across * kChannels;
  }
};

template <class T, int kDepth, int kTokens>
__device__ void produce(Shared<T, kDepth, kTokens>& shared, const Maps& maps,
                        const TokenLinearSm90Params& p, const Tiles& tiles, int first) {
  constexpr int kStages = shared.kStages;
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < tiles.count + kStages; ++i) {
    const int stage = i % kStages;
    Mbarrier& full = shared.full[stage];
    if (i >= kStages) {
      mbarrier_wait(shared.done[stage], (i / kStages - 1) % 2);
      if (lane == 0) {
        const Tile tile(p, i - kStages);
        tma_store(maps.y, {tile.c, tiles.t, tile.b}, shared.x[stage][first]);
        tma_store_commit();
        tma_store_wait_read<0>();
      }
    }
    if (i >= tiles.count) continue;
    const Tile tile(p, i);
    if (lane == 0) {
      mbarrier_arrive_expect(full, sizeof shared.x[stage]);
      tma_load(shared.x[stage], maps.x, full, {tile.c, 0, tile.b});
    }
    if (p.mean) {
      for (int s = lane; s < kDepth; s += 32) {
        const int64_t at = int64_t{tile.b} * p.S + s;
        shared.moments[stage][s] = s < p.S ? Moments{p.mean[at], p.rstd[at]} : Moments{};
      }
      warp_barrier();
    }
    if (lane == 0) mbarrier_arrive(full);
  }
}

// weight's rows from t on, with zeros beyond the end.
template <int kBytes, class T, int kDepth, int kTokens>
__device__ void load_weight(Shared<T, kDepth, kTokens>& shared, const TokenLinearSm90Params& p,
                            int t) {
  constexpr int kItems = kBytes / sizeof(T), kPerRow = kDepth / kItems;
  constexpr int kCount = kTokens * kPerRow;
  const T* const weight = static_cast<const T*>(p.weight) + t * p.weight_stride;
  const auto with_item = [&](int i, const auto& f) {
    const int row = i / kPerRow, s = i % kPerRow * kItems;
    const bool inside = t + row < p.T && s < p.S;
    const T* const from = inside ? weight + row * p.weight_stride + s : weight;
    f(swizzled(shared.weight[s / 64], row, s % 64), from, inside);
  };
  if constexpr (kBytes >= 4) {
    for (int i = threadIdx.x; i < kCount; i += kConsumers) {
      with_item(i, [](T* to, const T* from, bool inside) { cp_async<kBytes>(to, from, inside); });
    }
  } else {
    constexpr int kBatch = 16;  // loads that are under way before the first is waited for
    T items[kBatch];
    for (int i = threadIdx.x; i < kCount; i += kBatch * kConsumers) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        with_item(i + j * kConsumers,
                  [&](T*, const T* from, bool inside) { items[j] = inside ? *from : T(0.0f); });
      }
#pragma unroll
      for (int j = 0; j < kBatch && i + j * kConsumers < kCount; ++j) {
        with_item(i + j * kConsumers, [&](T* to, const T*, bool) { *to = items[j]; });
      }
    }
  }
}

// What belongs to the tokens from t on; weight is there.
template <class T, int kDepth, int kTokens>
__device__ void load_tokens(Shared<T, kDepth, kTokens>& shared, const TokenLinearSm90Params& p,
                            int t) {
  for (int row = threadIdx.x; row < kTokens; row += kConsumers) {
    OfToken of{0.0f, t + row < p.T ? number(p.bias, t + row, 0.0f) : 0.0f};
    if (p.norm_bias.data) {
      for (int s = 0; s < kDepth; s += 8) {
        struct alignas(16) Word {
          T items[8];
        };
        const T* const at = swizzled(shared.weight[s / 64], row, s % 64);
        const Word word = *reinterpret_cast<const Word*>(at);
#pragma unroll
        for (int j = 0; j < 8; ++j) of.row_sum += float(word.items[j]);
      }
    }
    shared.of_tokens[row] = of;
  }
}

__device__ OfChannel of_channel(const TokenLinearSm90Params& p, int c) {
  if (c >= p.C) return {};
  const float scale = number(p.scale, c, 1.0f);
  return {scale * number(p.norm_weight, c, 1.0f), scale * number(p.norm_bias, c, 0.0f), scale};
}

template <class T, int kDepth, int kTokens>
__device__ void consume(Shared<T, kDepth, kTokens>& shared, const TokenLinearSm90Params& p,
                        const Tiles& tiles, int first, bool add, bool weight_by_8) {
  constexpr int kStages = shared.kStages;
  if (weight_by_8) {
    load_weight<8>(shared, p, tiles.t);
  } else {
    load_weight<2>(shared, p, tiles.t);
  }
  cp_async_commit();
  cp_async_wait<0>();
  async_proxy_fence();
  named_barrier(1, kConsumers);
  load_tokens(shared, p, tiles.t);
  named_barrier(1, kConsumers);

  for (int i = threadIdx.x / kWarpgroup; i < tiles.count; i += 2) {
    const int stage = i % kStages;
    const Tile tile(p, i);
    const OfChannel channels[2] = {of_channel(p, tile.c + channel_of(0)),
                                   of_channel(p, tile.c + channel_of(1))};
    mbarrier_wait(shared.full[stage], i / kStages % 2);
    uint32_t a[kDepth / 16][4];
    load_operand<T, kDepth>(a, shared.x[stage], p.mean ? shared.moments[stage] : nullptr);
    float sums[kTokens / 2];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const uint64_t weight = wgmma_operand(&shared.weight[k / 64][0][k % 64]);
      wgmma<T, kTokens>(sums, a[k / 16], weight, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(sums);
    const T* const residual = p.residual.data && !add ? static_cast<const T*>(p.residual.data) +
                                                            tile.b * p.residual.stride_b +
                                                            tiles.t * p.residual.stride + tile.c
                                                      : nullptr;
    store_tile<T, kTokens>(&shared.x[stage][first], sums, channels, shared.of_tokens, add, residual,
                           p.residual.stride, p.T - tiles.t, p.C - tile.c);
    async_proxy_fence();
    mbarrier_arrive(shared.done[stage]);
  }
}

// The residual is x: it is in shared memory already.
__device__ bool adds_x(const TokenLinearSm90Params& p) {
  return same(p.residual, p.x) && p.T <= p.S;
}

template <class T, int kDepth, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    token_linear_sm90_kernel(const __grid_constant__ Maps maps,
                             const __grid_constant__ TokenLinearSm90Params p, bool weight_by_8) {
  auto& shared = shared_memory<Shared<T, kDepth, kTokens>>();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < shared.kStages; ++stage) {
      mbarrier_init(shared.full[stage], 2);
      mbarrier_init(shared.done[stage], kWarpgroup);
    }
    mbarrier_init_fence();
  }
  block_barrier();
  const Tiles tiles(p, kTokens);
  // The rows of x that y takes the place of: its own where they are the residual.
  const bool add = adds_x(p);
  const int first = add ? tiles.t : 0;
  if (threadIdx.x < kConsumers) {
    take_registers<232>();
    consume(shared, p, tiles, first, add, weight_by_8);
  } else {
    give_registers<40>();
    if (threadIdx.x >= kConsumers + 32) return;
    produce(shared, maps, p, tiles, first);
  }
}

template <class T, int kDepth, int kTokens>
void launch_for(const TokenLinearSm90Params& p, cudaStream_t stream) {
  static_assert(sizeof(Shared<T, kDepth, kTokens>) <= kSharedLimit);
  const Maps maps{tiles_map<T>(p.x, p.B, p.S, p.C, kDepth),
                  tiles_map<T>({p.y, int64_t{p.T} * p.C, p.C}, p.B, p.T, p.C, kTokens)};
  const bool weight_by_8 =
      reinterpret_cast<uintptr_t>(p.weight) % 8 == 0 && (p.S | p.weight_stride) % 4 == 0;
  const int token_tiles = (p.T + kTokens - 1) / kTokens;
  const int64_t tiles = p.B * ((p.C + kChannels - 1) / kChannels);
  const int64_t blocks = std::min<int64_t>(tiles, std::max(1, multiprocessors() / token_tiles));
  launch(token_linear_sm90_kernel<T, kDepth, kTokens>, dim3(blocks, token_tiles), dim3(kThreads),
         sizeof(Shared<T, kDepth, kTokens>), stream, maps, p, weight_by_8);
}

template <class T>
void launch_for(const TokenLinearSm90Params& p, cudaStream_t stream) {
  if (p.S <= 64) return launch_for<T, 64, 64>(p, stream);
  if (p.S <= 128) return launch_for<T, 128, 128>(p, stream);
  if (p.S <= 208) return launch_for<T, 208, 208>(p, stream);
  launch_for<T, 256, 128>(p, stream);
}

}  // namespace

bool fits_sm90(const TokenLinearSm90Params& p) {
  const Rows y{p.y, int64_t{p.T} * p.C, p.C};
  const int64_t tiles = p.B * ((int64_t{p.C} + kChannels - 1) / kChannels);
  return is_hopper() && (p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16) && p.S >= 1 &&
         p.S <= 256 && p.T <= 1 << 20 && tiles <= 1 << 30 && fits_tiles(p.x, p.C) &&
         fits_tiles(y, p.C);
}

void launch_token_linear_sm90(const TokenLinearSm90Params& p, cudaStream_t stream) {
  if (p.B == 0 || p.T == 0 || p.C == 0) return;
  p.dtype == DType::kFloat16 ? launch_for<__half>(p, stream) : launch_for<__nv_bfloat16>(p, stream);
}

}  // namespace shiftmlp
