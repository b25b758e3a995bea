// token_linear is 2 * B * S * T * C operations on bytes(x) + bytes(y) of traffic, to which a
// residual that is x adds nothing: at 196 tokens 98 operations a byte. An H200's tensor cores do
// 206 while its memory moves a byte (990 TFLOP/s, 4.8 TB/s), so that the floor is the memory's: 77
// MB and 16 us for 256 images of 384 channels.
//
// So x is read once and y written once, by TMA, and weight stays in shared memory while tiles of x
// stream through a ring. The product is transposed, channels as rows and tokens as columns, for x
// has its channels dense. A warp loads, two warpgroups take turns in multiplying, each with a tile
// of its own, and put y where x was; the warp stores it.
#include "token_tiles_sm90.h"

namespace shiftmlp {
namespace {

template <class T, int kDepth, int kTokens>
struct Shared {
  TileRing<T, kDepth, 1024 / kDepth> tiles;  // 128 KB of x at most; weight has the rest
  alignas(1024) Line<T> weight[(kDepth + 63) / 64][kTokens];
  OfRow rows[kTokens];
};

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

// What belongs to those rows; weight is there.
template <class T, int kDepth, int kTokens>
__device__ void load_rows(Shared<T, kDepth, kTokens>& shared, const TokenLinearSm90Params& p,
                          int t) {
  for (int row = threadIdx.x; row < kTokens; row += kConsumers) {
    OfRow of{0.0f, t + row < p.T ? read(p.bias, t + row, 0.0f) : 0.0f};
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
    shared.rows[row] = of;
  }
}

__device__ OfChannel of_channel(const TokenLinearSm90Params& p, int c) {
  if (c >= p.C) return {};
  const float scale = read(p.scale, c, 1.0f);
  return {scale * read(p.norm_weight, c, 1.0f), scale * read(p.norm_bias, c, 0.0f), scale};
}

template <class T, int kDepth, int kTokens>
__device__ void consume(Shared<T, kDepth, kTokens>& shared, const TokenLinearSm90Params& p,
                        const Tiles& tiles, bool weight_by_8) {
  if (weight_by_8) {
    load_weight<8>(shared, p, tiles.t);
  } else {
    load_weight<2>(shared, p, tiles.t);
  }
  cp_async_commit();
  cp_async_wait<0>();
  async_proxy_fence();
  named_barrier(1, kConsumers);
  load_rows(shared, p, tiles.t);
  named_barrier(1, kConsumers);

  auto& ring = shared.tiles;
  for (int i = threadIdx.x / kWarpgroup; i < tiles.count; i += 2) {
    const int c = tiles[i].c;
    const OfChannel channels[2] = {of_channel(p, c + channel_of(0)),
                                   of_channel(p, c + channel_of(1))};
    ring.wait(i);
    uint32_t a[kDepth / 16][4];
    load_operand(a, ring, i, p.mean != nullptr);
    float sums[kTokens / 2];
    wgmma_fence(a);
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const uint64_t weight = wgmma_operand(&shared.weight[k / 64][0][k % 64]);
      wgmma<T, kTokens>(sums, a[k / 16], weight, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(sums);
    store_tile<T, kTokens>(ring, i, p, tiles, sums, channels, shared.rows);
    ring.hand_back(i);
  }
}

template <class T, int kDepth, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    token_linear_sm90_kernel(const __grid_constant__ TileMaps maps,
                             const __grid_constant__ TokenLinearSm90Params p, bool weight_by_8) {
  auto& shared = shared_memory<Shared<T, kDepth, kTokens>>();
  if (threadIdx.x == 0) {
    shared.tiles.init();
    mbarrier_init_fence();
  }
  block_barrier();
  const Tiles tiles(p, kTokens);
  if (threadIdx.x < kConsumers) {
    take_registers<232>();
    consume(shared, p, tiles, weight_by_8);
  } else {
    give_registers<40>();
    if (threadIdx.x < kConsumers + 32) shared.tiles.copy(maps, p, tiles);
  }
}

template <class T, int kDepth, int kTokens>
void launch_for(const TokenLinearSm90Params& p, cudaStream_t stream) {
  static_assert(sizeof(Shared<T, kDepth, kTokens>) <= kSharedLimit);
  const bool weight_by_8 =
      reinterpret_cast<uintptr_t>(p.weight) % 8 == 0 && (p.S | p.weight_stride) % 4 == 0;
  launch(token_linear_sm90_kernel<T, kDepth, kTokens>, grid_of_tiles(p, kTokens), dim3(kThreads),
         sizeof(Shared<T, kDepth, kTokens>), stream, tile_maps<T>(p, kDepth, kTokens), p,
         weight_by_8);
}

template <class T>
void launch_for(const TokenLinearSm90Params& p, cudaStream_t stream) {
  if (p.S <= 64) return launch_for<T, 64, 64>(p, stream);
  if (p.S <= 128) return launch_for<T, 128, 128>(p, stream);
  if (p.S <= 208) return launch_for<T, 208, 208>(p, stream);
  launch_for<T, 256, 128>(p, stream);
}

}  // namespace

bool fits_sm90(const TokenLinearSm90Params& p) { return fits_tiles(p); }

void launch_token_linear_sm90(const TokenLinearSm90Params& p, cudaStream_t stream) {
  if (p.B == 0 || p.T == 0 || p.C == 0) return;
  p.dtype == DType::kFloat16 ? launch_for<__half>(p, stream) : launch_for<__nv_bfloat16>(p, stream);
}

}  // namespace shiftmlp
