// What the kernels over tokens share on sm_90a. A tile is 64 channels of an image by its tokens, in
// shared memory as TMA brings it and takes it away: a row for each token, swizzled.
//
// A block has two warpgroups that compute, each on tiles of its own, and one that copies. A warp
// has the 16 channels of its quarter; a lane's, g and g + 8 of those, and its tokens, 2q and 2q + 1
// of each eight, are those that wgmma leaves it with.
#pragma once

#include <algorithm>

#include "cluster.h"
#include "tiles_sm90.h"
#include "tokens_sm90.h"

namespace shiftmlp {

constexpr int kChannels = 64;  // of a tile

struct Tile {
  int b, c;
};

// The tiles of a block, of which the even ones are the first warpgroup's. All are of the same
// output tokens, from t on. The blocks of a cluster have as many tiles each: the last of all may
// lie behind the last image, where TMA reads zeros and writes nothing.
struct Tiles {
  int count, across, t;
  bool add;   // the residual is x, which is in shared memory already
  int first;  // y takes the place of x from this row on: of its own where it is added to

  __device__ Tiles(const TokensSm90& p, int tokens)
      : across((p.C + kChannels - 1) / kChannels), t(blockIdx.y * tokens) {
    const int64_t pairs = (p.B * across + 1) / 2;
    const int64_t first_block = blockIdx.x - cluster_rank();
    count = 2 * int((pairs - first_block + gridDim.x - 1) / gridDim.x);
    const Rows &x = p.x, &r = p.residual;
    add = r.data == x.data && r.stride_b == x.stride_b && r.stride == x.stride && p.T <= p.S;
    first = add ? t : 0;
  }

  __device__ Tile operator[](int i) const {
    const unsigned tile = 2 * (blockIdx.x + i / 2 * gridDim.x) + i % 2, n = across;
    return {int(tile / n), int(tile % n) * kChannels};
  }
};

inline dim3 grid_of_tiles(const TokensSm90& p, int tokens, int cluster = 1) {
  const int64_t pairs = (p.B * ((p.C + kChannels - 1) / kChannels) + 1) / 2;
  const int down = (p.T + tokens - 1) / tokens, most = std::max(1, multiprocessors() / down);
  return dim3(std::min<int64_t>((pairs + cluster - 1) / cluster, most / cluster) * cluster, down);
}

// Of a token, what LayerNorm takes from its channels.
struct alignas(8) Moments {
  float mean, rstd;
};

struct TileMaps {
  TensorMap x, y;
};

// Tiles of x on their way in, and of y, in the same places, on their way out.
template <class T, int kDepth, int kPlaces>
struct TileRing {
  Line<T> x[kPlaces][kDepth];
  Moments moments[kPlaces][kDepth];
  Mbarrier full[kPlaces], done[kPlaces];

  __device__ void init() {
    for (int place = 0; place < kPlaces; ++place) {
      mbarrier_init(full[place], 1 + 32);  // for x, and by each lane for its moments
      mbarrier_init(done[place], kWarpgroup);
    }
  }

  // By one warp.
  __device__ void copy(const TileMaps& maps, const TokensSm90& p, const Tiles& tiles) {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < tiles.count + kPlaces; ++i) {
      const int place = i % kPlaces;
      if (i >= kPlaces) {
        mbarrier_wait(done[place], (i / kPlaces - 1) % 2);
        if (lane == 0) {
          const Tile tile = tiles[i - kPlaces];
          tma_store(maps.y, {tile.c, tiles.t, tile.b}, x[place][tiles.first]);
          tma_store_commit();
          tma_store_wait_read<0>();
        }
      }
      if (i >= tiles.count) continue;
      const Tile tile = tiles[i];
      if (lane == 0) {
        mbarrier_arrive_expect(full[place], sizeof x[place]);
        tma_load(x[place], maps.x, full[place], {tile.c, 0, tile.b});
      }
      if (p.mean) {
        for (int s = lane; s < kDepth; s += 32) {
          const int64_t at = int64_t{tile.b} * p.S + s;
          const bool inside = s < p.S && tile.b < p.B;
          moments[place][s] = inside ? Moments{p.mean[at], p.rstd[at]} : Moments{};
        }
      }
      mbarrier_arrive(full[place]);
    }
  }

  // By the warpgroup whose tile i is.
  __device__ void wait(int i) { mbarrier_wait(full[i % kPlaces], i / kPlaces % 2); }
  __device__ void hand_back(int i) {
    async_proxy_fence();
    mbarrier_arrive(done[i % kPlaces]);
  }
};

// Where a lane's row of four 8 x 8 matrices stands, which are 16 tokens of its warp's channels.
struct Fragment {
  int row, column;

  __device__ Fragment() {
    const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
    row = lane / 16 * 8 + lane % 8;
    column = warp * 16 + lane / 8 % 2 * 8;
  }
};

// The lane's channels of a tile: 0 is g of its warp's, 1 is g + 8.
__device__ inline int channel_of(int which) {
  return threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4 + which * 8;
}

// x^T of tile i, a warp's channels and all tokens, as the left operand; normalised if asked for.
template <class T, int kDepth, int kPlaces>
__device__ void load_operand(uint32_t (&a)[kDepth / 16][4], TileRing<T, kDepth, kPlaces>& ring,
                             int i, bool normalise) {
  Line<T>* const x = ring.x[i % kPlaces];
  const Moments* const moments = ring.moments[i % kPlaces];
  const Fragment fragment;
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    ldmatrix<true>(a[k], swizzled(x, 16 * k + fragment.row, fragment.column));
    if (!normalise) continue;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const Moments* const of = &moments[16 * k + n / 2 * 8 + threadIdx.x % 4 * 2];
      float pair[2];
      unpack<T>(a[k][n], pair);
      a[k][n] = pack<T>((pair[0] - of[0].mean) * of[0].rstd, (pair[1] - of[1].mean) * of[1].rstd);
    }
  }
}

// The terms of a sum over tokens or hidden units besides the products:
// channel.sum * sum + channel.row_sum * row.row_sum + channel.bias * row.bias, where a row is one
// of the weight's.
struct alignas(8) OfRow {
  float row_sum, bias;
};
struct OfChannel {
  float sum, row_sum, bias;

  __device__ float operator()(float value, const OfRow& row) const {
    return sum * value + (row_sum * row.row_sum + bias * row.bias);
  }
};

// y of tile i, from its sums, into the place of x.
template <class T, int kTokens, int kDepth, int kPlaces>
__device__ void store_tile(TileRing<T, kDepth, kPlaces>& ring, int i, const TokensSm90& p,
                           const Tiles& tiles, const float (&sums)[kTokens / 2],
                           const OfChannel (&channels)[2], const OfRow* rows) {
  static_assert((kTokens + 15) / 16 * 16 <= kDepth);
  const Tile tile = tiles[i];
  Line<T>* const lines = &ring.x[i % kPlaces][tiles.first];
  const T* residual = nullptr;
  if (p.residual.data && !tiles.add && tile.b < p.B) {
    residual = static_cast<const T*>(p.residual.data) + tile.b * p.residual.stride_b +
               tiles.t * p.residual.stride + tile.c;
  }
  const Fragment fragment;
  const int q = threadIdx.x % 4 * 2;
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    T* const at = swizzled(lines, t + fragment.row, fragment.column);
    uint32_t words[4] = {};
    if (tiles.add) ldmatrix<true>(words, at);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (t + n / 2 * 8 >= kTokens) continue;  // the last eight of sixteen
      float y[2];
      unpack<T>(words[n], y);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = t + n / 2 * 8 + q + j, channel = channel_of(n % 2);
        if (residual && tiles.t + token < p.T && tile.c + channel < p.C) {
          y[j] = float(residual[token * p.residual.stride + channel]);
        }
        y[j] += channels[n % 2](sums[t / 2 + 2 * n + j], rows[token]);
      }
      words[n] = pack<T>(y[0], y[1]);
    }
    stmatrix<true>(at, words);
  }
}

// (images, tokens, C) as TMA sees it, in boxes of a tile.
template <class T>
TensorMap tile_map(const Rows& rows, int64_t images, int64_t tokens, int64_t C, int box) {
  return tensor_map<T, 3>(static_cast<const T*>(rows.data), {C, tokens, images},
                          {rows.stride, rows.stride_b}, {kChannels, box, 1}, Swizzle::kSwizzle128);
}

inline Rows rows_of_y(const TokensSm90& p) { return {p.y, int64_t{p.T} * p.C, p.C}; }

template <class T>
TileMaps tile_maps(const TokensSm90& p, int depth, int tokens) {
  return {tile_map<T>(p.x, p.B, p.S, p.C, depth), tile_map<T>(rows_of_y(p), p.B, p.T, p.C, tokens)};
}

inline bool fits_tiles(const TokensSm90& p) {
  const int64_t tiles = p.B * ((int64_t{p.C} + kChannels - 1) / kChannels);
  return is_hopper() && (p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16) && 1 <= p.S &&
         p.S <= 256 && p.T <= 1 << 20 && tiles <= 1 << 30 && fits_tma(p.x, p.C) &&
         fits_tma(rows_of_y(p), p.C);
}

}  // namespace shiftmlp
