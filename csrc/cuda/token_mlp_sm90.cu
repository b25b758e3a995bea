// token_mlp is 4 * B * S * D * C operations on bytes(x) + bytes(y) of traffic, to which a residual
// that is x adds nothing: D operations a byte. An H200's tensor cores do 206 while its memory moves
// a byte (990 TFLOP/s, 4.8 TB/s), so that from 256 hidden units on the floor is theirs: 59 GFLOP
// and 60 us for 256 images of 768 channels with 196 tokens and 384 hidden units, 62 on tiles that
// are 208 and 200 tokens. The memory's is 154 MB and 32 us.
//
// So nothing but x and y touches memory: hidden units come in chunks of 64 whose sums and values
// stay in registers, and so does x. Both products are transposed, channels as rows. Two warpgroups
// take turns at the tensor cores, and activate while the other one multiplies. One warp streams the
// weights through a ring, one the tiles. Two blocks form a cluster and load half of the weights
// each for both: alone they would read more from L2 than it has to give. w1 is packed transposed
// first, for TMA cannot read rows of 196 tokens.
#include "activation_sm90.h"

namespace shiftmlp {
namespace {

template <class T, int kDepth, int kTokens>
struct Shared {
  static constexpr int kBoxes = 1024 / kDepth / 2 * 2;     // 128 KB of both weights at most
  static constexpr int kLines = (kTokens + 15) / 16 * 16;  // of w2, whose halves are swizzled alike
  static_assert(kLines <= kDepth && kDepth % 16 == 0);

  TileRing<T, kDepth, kDepth <= 208 ? 4 : 2> tiles;
  alignas(1024) Line<T> boxes[kBoxes][kDepth];
  Mbarrier full[kBoxes], empty[kBoxes];
  OfRow rows[kLines];  // of w2; behind this struct are those of w1

  __device__ void init(int cluster) {
    tiles.init();
    for (int i = 0; i < kBoxes; ++i) {
      mbarrier_init(full[i], 1);
      mbarrier_init(empty[i], cluster * kConsumers / 32);
    }
  }
  __device__ OfRow* hidden() { return reinterpret_cast<OfRow*>(this + 1); }

  __device__ void wait(int box) { mbarrier_wait(full[box % kBoxes], box / kBoxes % 2); }
  // By all warps of both warpgroups, to all blocks of the cluster.
  __device__ void hand_back(int box, int cluster) {
    const int lane = threadIdx.x % 32;
    if (lane < cluster) mbarrier_arrive_in(lane, empty[box % kBoxes]);
  }
};

// Boxes of w1 and w2 in turns, for each chunk of each pair of tiles, in equal shares by the blocks
// of the cluster. By one thread.
template <class T, int kDepth, int kTokens>
__device__ void stream(Shared<T, kDepth, kTokens>& shared, const TensorMap& w1, const TensorMap& w2,
                       const Tiles& tiles, int chunks, int cluster) {
  for (int box = 0; box < tiles.count * chunks; ++box) {
    const int place = box % shared.kBoxes, j = box / 2 % chunks * kChunk;
    mbarrier_wait(shared.empty[place], box / shared.kBoxes % 2 ^ 1);
    const auto load = [&](const TensorMap& w, int lines, int row) {
      Mbarrier& full = shared.full[place];
      mbarrier_arrive_expect(full, lines * sizeof(Line<T>));
      if (cluster == 1) return tma_load(shared.boxes[place], w, full, {j, row});
      const int share = lines / 2 * cluster_rank();
      tma_multicast(shared.boxes[place] + share, w, full, {j, row + share}, 3);
    };
    box % 2 == 0 ? load(w1, kDepth, 0) : load(w2, shared.kLines, tiles.t);
  }
}

// What belongs to the rows of both weights, with zeros beyond the end. The first turns part this
// from what reads it.
template <class T, int kDepth, int kTokens>
__device__ void load_rows(Shared<T, kDepth, kTokens>& shared, const TokenMlpSm90Params& p, int t,
                          const OfRow* hidden) {
  for (int i = threadIdx.x; i < kTokens; i += kConsumers) {
    shared.rows[i] = {0.0f, t + i < p.T ? read(p.b2, t + i, 0.0f) : 0.0f};
  }
  for (int j = threadIdx.x; j < chunks_of(p.D) * kChunk; j += kConsumers) {
    shared.hidden()[j] = j < p.D ? hidden[j] : OfRow{};
  }
}

// What a channel takes from the sums of the first product, and what from those of the second.
__device__ OfChannel of_hidden(const TokenMlpSm90Params& p, int c) {
  if (c >= p.C) return {};
  return {read(p.norm_weight, c, 1.0f), read(p.norm_bias, c, 0.0f), 1.0f};
}
__device__ OfChannel of_y(const TokenMlpSm90Params& p, int c) {
  if (c >= p.C) return {};
  const float scale = read(p.scale, c, 1.0f);
  return {scale, 0.0f, scale};
}

template <class T, int kDepth, int kTokens>
__device__ void consume(Shared<T, kDepth, kTokens>& shared, const TokenMlpSm90Params& p,
                        const Tiles& tiles, const OfRow* hidden, int cluster) {
  load_rows(shared, p, tiles.t, hidden);
  const int group = threadIdx.x / kWarpgroup, chunks = chunks_of(p.D);
  const auto take_turn = [&] { named_barrier(1 + group, kConsumers); };
  const auto pass_turn = [&] { named_barrier_arrive(2 - group, kConsumers); };
  if (group == 1) pass_turn();

  auto& ring = shared.tiles;
  int box = 0;
  for (int i = group; i < tiles.count; i += 2) {
    const int first = tiles[i].c + channel_of(0), second = tiles[i].c + channel_of(1);
    const OfChannel hidden_terms[2] = {of_hidden(p, first), of_hidden(p, second)};
    ring.wait(i);
    uint32_t x[kDepth / 16][4], activated[kChunk / 16][4];
    load_operand(x, ring, i, p.mean != nullptr);
    float sums[kChunk / 2], y[kTokens / 2] = {};

    const auto multiply_by_w1 = [&] {
      Line<T>* const w1 = shared.boxes[box % shared.kBoxes];
      shared.wait(box++);
      wgmma_fence(x);
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        wgmma<T, kChunk, Major::kMN>(sums, x[k / 16], wgmma_operand(w1[k]), k > 0);
      }
    };
    const auto multiply_by_w2 = [&] {
      Line<T>* const w2 = shared.boxes[box % shared.kBoxes];
      shared.wait(box++);
      wgmma_fence(activated);
#pragma unroll
      for (int k = 0; k < kChunk; k += 16) {
        wgmma<T, kTokens>(y, activated[k / 16], wgmma_operand(&w2[0][k]), true);
      }
    };

    take_turn();
    multiply_by_w1();
    wgmma_commit();
    pass_turn();
    wgmma_wait<0>(sums);
    shared.hand_back(box - 1, cluster);
    for (int chunk = 0; chunk < chunks - 1; ++chunk) {
      activate_chunk<T>(activated, sums, hidden_terms, shared.hidden() + chunk * kChunk,
                        p.activation);
      take_turn();
      multiply_by_w2();
      multiply_by_w1();
      wgmma_commit();
      pass_turn();
      wgmma_wait<0>(sums, y);
      shared.hand_back(box - 2, cluster);
      shared.hand_back(box - 1, cluster);
    }
    activate_chunk<T>(activated, sums, hidden_terms, shared.hidden() + (chunks - 1) * kChunk,
                      p.activation);
    take_turn();
    multiply_by_w2();
    wgmma_commit();
    pass_turn();
    wgmma_wait<0>(y);
    shared.hand_back(box - 1, cluster);

    const OfChannel y_terms[2] = {of_y(p, first), of_y(p, second)};
    store_tile<T, kTokens>(ring, i, p, tiles, y, y_terms, shared.rows);
    ring.hand_back(i);
  }
  if (group == 0) take_turn();  // which the other one passed for nothing
}

struct Maps {
  TileMaps tiles;
  TensorMap w1, w2;
};

template <class T, int kDepth, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    token_mlp_sm90_kernel(const __grid_constant__ Maps maps,
                          const __grid_constant__ TokenMlpSm90Params p, const OfRow* hidden,
                          int cluster) {
  auto& shared = shared_memory<Shared<T, kDepth, kTokens>>();
  if (threadIdx.x == 0) {
    shared.init(cluster);
    mbarrier_init_fence();
  }
  cluster_barrier();
  if (threadIdx.x < kConsumers) {
    take_registers<240>();
    consume(shared, p, Tiles(p, kTokens), hidden, cluster);
  } else {
    give_registers<24>();
    const Tiles tiles(p, kTokens);
    const int warp = (threadIdx.x - kConsumers) / 32;
    if (warp == 0) {
      shared.tiles.copy(maps.tiles, p, tiles);
    } else if (warp == 1 && threadIdx.x % 32 == 0) {
      stream(shared, maps.w1, maps.w2, tiles, chunks_of(p.D), cluster);
    }
  }
  cluster_barrier();  // the other block hands places back to this one until it has read them all
}

// What belongs to w1's rows stands behind w1 as the kernel reads it, (S, D).
OfRow* hidden_rows(const TokenMlpSm90Params& p) {
  return reinterpret_cast<OfRow*>(static_cast<char*>(p.workspace) + int64_t{p.S} * p.D * 2);
}

constexpr int kPackRows = 32;  // of w1 in a block

// Packs w1 and what belongs to its rows.
template <class T>
__global__ void __launch_bounds__(kPackRows * 8)
    pack_w1_kernel(const __grid_constant__ TokenMlpSm90Params p, OfRow* hidden) {
  auto& rows = shared_memory<T[kPackRows][256 + 2]>();  // 2: so that no column lies in one bank
  T* const packed = static_cast<T*>(p.workspace);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * kPackRows;
  for (int row = warp; row < kPackRows; row += 8) {
    const int j = first + row;
    if (j >= p.D) continue;
    const T* const w1 = static_cast<const T*>(p.w1) + j * p.w1_stride;
    float sum = 0.0f;
    for (int s = lane; s < p.S; s += 32) {
      rows[row][s] = w1[s];
      sum += float(rows[row][s]);
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) hidden[j] = {sum, read(p.b1, j, 0.0f)};
  }
  block_barrier();
  if (first + lane >= p.D) return;
  for (int s = warp; s < p.S; s += 8) packed[s * p.D + first + lane] = rows[lane][s];
}

template <class T, int kDepth, int kTokens>
size_t shared_bytes(const TokenMlpSm90Params& p) {
  return sizeof(Shared<T, kDepth, kTokens>) + chunks_of(p.D) * kChunk * sizeof(OfRow);
}

template <class T, int kDepth, int kTokens>
void launch_for(const TokenMlpSm90Params& p, cudaStream_t stream) {
  launch_pack_w1(p, stream);
  const int cluster = grid_of_tiles(p, kTokens).x > 1 ? 2 : 1;
  const auto map_of = [&](const void* w, int64_t stride, int32_t rows, int lines) {
    return tensor_map<T, 2>(static_cast<const T*>(w), {p.D, rows}, {stride},
                            {kChunk, lines / cluster}, Swizzle::kSwizzle128);
  };
  const Maps maps{tile_maps<T>(p, kDepth, kTokens), map_of(p.workspace, p.D, p.S, kDepth),
                  map_of(p.w2, p.w2_stride, p.T, Shared<T, kDepth, kTokens>::kLines)};
  launch_clusters(token_mlp_sm90_kernel<T, kDepth, kTokens>, cluster,
                  grid_of_tiles(p, kTokens, cluster), dim3(kThreads),
                  shared_bytes<T, kDepth, kTokens>(p), stream, maps, p,
                  static_cast<const OfRow*>(hidden_rows(p)), cluster);
}

// Calls f with T, the tokens of a tile of x and those of a tile of y.
template <class F>
void with_tile(const TokenMlpSm90Params& p, const F& f) {
  const int longest = std::max(p.S, p.T);
  const auto with_tokens = [&](auto type) {
    if (longest <= 64) return f(type, Int<64>{}, Int<64>{});
    if (longest <= 144) return f(type, Int<144>{}, Int<144>{});
    if (p.S <= 208 && p.T <= 200) return f(type, Int<208>{}, Int<200>{});
    f(type, Int<256>{}, Int<128>{});
  };
  p.dtype == DType::kFloat16 ? with_tokens(Type<__half>{}) : with_tokens(Type<__nv_bfloat16>{});
}

}  // namespace

int64_t workspace_bytes(const TokenMlpSm90Params& p) {
  return int64_t{p.D} * (p.S * 2 + sizeof(OfRow));
}

bool fits_sm90(const TokenMlpSm90Params& p) {
  const Rows w2{p.w2, p.T * p.w2_stride, p.w2_stride};
  const int64_t tiles = p.B * ((int64_t{p.C} + kChannels - 1) / kChannels);
  if (!fits_tiles(p) || p.D > 1 << 20 || !fits_tma(w2, p.D)) return false;
  if (tiles * chunks_of(p.D) > 1 << 30) return false;
  bool fits = false;
  with_tile(p, [&](auto type, auto depth, auto tokens) {
    using T = typename decltype(type)::type;
    fits = shared_bytes<T, decltype(depth)::value, decltype(tokens)::value>(p) <= kSharedLimit;
  });
  return fits;
}

void launch_pack_w1(const TokenMlpSm90Params& p, cudaStream_t stream) {
  const auto launch_for = [&](auto type) {
    using T = typename decltype(type)::type;
    launch(pack_w1_kernel<T>, dim3((p.D + kPackRows - 1) / kPackRows), dim3(kPackRows * 8),
           sizeof(T[kPackRows][256 + 2]), stream, p, hidden_rows(p));
  };
  p.dtype == DType::kFloat16 ? launch_for(Type<__half>{}) : launch_for(Type<__nv_bfloat16>{});
}

void launch_token_mlp_sm90(const TokenMlpSm90Params& p, cudaStream_t stream) {
  if (p.B == 0 || p.T == 0 || p.C == 0) return;
  with_tile(p, [&](auto type, auto depth, auto tokens) {
    using T = typename decltype(type)::type;
    launch_for<T, decltype(depth)::value, decltype(tokens)::value>(p, stream);
  });
}

}  // namespace shiftmlp
