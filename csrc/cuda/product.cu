// A block owns some columns of an image of the result by some rows, a warp a part of those. Chunks
// of both operands go through a ring in shared memory, as they lie in memory: what is summed over
// may be along the rows there or across them, and is loaded as mma wants it.
#include "product.h"
#include "result.h"
#include "tile.h"

namespace shiftmlp {
namespace {

constexpr int kStages = 3;  // chunks in shared memory
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

// What a block computes, and each of its warps: columns by rows of the result.
template <int M, int N, int warpM, int warpN>
struct Shape {
  static constexpr int kM = M, kN = N, kWarpM = warpM, kWarpN = warpN;
  static constexpr int kWarpsAcross = kM / kWarpM;
  static constexpr int kThreads = kWarpsAcross * (kN / kWarpN) * 32;
};

// How the operands lie: what is summed over are their rows in memory, or those rows' columns.
template <bool columns, bool rows>
struct Layout {
  static constexpr bool kColumnsSumRows = columns, kRowsSumRows = rows;
};

struct Params {
  Side sides[2];  // columns and rows
  Result result;
  int64_t first;  // image of this launch
  int64_t images;
  int32_t M, N, K;
  int32_t splits;
};

template <class T, class Layout, class Shape>
union Shared {
  struct {
    Tile<T, Layout::kColumnsSumRows, Shape::kM, Shape::kThreads> columns;
    Tile<T, Layout::kRowsSumRows, Shape::kN, Shape::kThreads> rows;
  } stages[kStages];
  float sums[Shape::kN][Shape::kM + kSumsPad];  // after the last chunk
};

// The terms of a chunk: of an image, from k on.
struct Chunk {
  int64_t b;
  int32_t k;

  __device__ void next(int32_t depth, int32_t K) {
    k += depth;
    if (k >= K) k = 0, ++b;
  }
};

// How many parts of that size `n` is dealt to.
__host__ __device__ int64_t parts_of(int64_t n, int size) { return (n + size - 1) / size; }

// The part of the product that a block computes.
struct Part {
  int32_t m, n;   // the first column and row
  int64_t image;  // of the result
  Chunk first;
  int64_t chunks;

  template <class Shape>
  __device__ Part(const Params& p, int depth, Shape) {
    const uint32_t across = parts_of(p.M, Shape::kM), down = parts_of(p.N, Shape::kN);
    m = blockIdx.x % across * Shape::kM;
    n = blockIdx.x / across % down * Shape::kN;
    image = p.first + blockIdx.x / (across * down);
    const int64_t of_image = parts_of(p.K, depth);
    first = {image, 0};
    chunks = of_image;
    if (p.splits > 0 && of_image > 0) {
      const int64_t all = p.images * of_image, begin = image * all / p.splits;
      first = {begin / of_image, static_cast<int32_t>(begin % of_image) * depth};
      chunks = (image + 1) * all / p.splits - begin;
    }
  }
};

template <class T, class Layout, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 2)
    product_kernel(const __grid_constant__ Params p) {
  auto& shared = shared_memory<Shared<T, Layout, Shape>>();
  constexpr int kDepth = shiftmlp::kDepth<T>;
  const Part part(p, kDepth, Shape{});
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % Shape::kWarpsAcross * Shape::kWarpM;
  const int warp_n = warp / Shape::kWarpsAcross * Shape::kWarpN;

  // Of columns 16 i + lane / 4 and the eighth after it, and rows 8 j + lane % 4 * 2 and the next.
  float sums[Shape::kWarpM / 16][Shape::kWarpN / 8][4] = {};
  Chunk loading = part.first, reading = part.first;
  constexpr int kBatch = 256 / Shape::kThreads;  // fewer threads have more registers each
  const auto pieces = [&part](auto& stage, int side, int32_t k) {
    return side == 0 ? stage.columns.pieces(part.m, k) : stage.rows.pieces(part.n, k);
  };
  int ring = 0;   // the stage that is loaded; the next one is the oldest
  int ahead = 0;  // chunks under way
  for (int64_t left = part.chunks + kStages - 1; left > 0; --left) {
    auto& stage = shared.stages[ring + 1 < kStages ? ring + 1 : 0];
    if (ahead == kStages - 1) {
      cp_async_wait<kStages - 2>();
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        if (!p.sides[i].changes) continue;
        change<kBatch>(pieces(stage, i, reading.k), p.sides[i], reading.b);
      }
      reading.next(kDepth, p.K);
      block_barrier();  // all have their part of this chunk, and are done with the one before
    }
    if (left >= kStages) {
      auto& to = shared.stages[ring];
      if (p.sides[0].plain) to.columns.copy(pieces(to, 0, loading.k), p.sides[0], loading.b);
      if (p.sides[1].plain) to.rows.copy(pieces(to, 1, loading.k), p.sides[1], loading.b);
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        if (!p.sides[i].plain) copy_any(pieces(to, i, loading.k), p.sides[i], loading.b);
      }
      loading.next(kDepth, p.K);
    }
    cp_async_commit();  // an empty group too: the wait above counts them
    ring = ring + 1 < kStages ? ring + 1 : 0;
    if (ahead < kStages - 1) {
      ++ahead;
      continue;
    }
#pragma unroll
    for (int k = 0; k < kDepth; k += kDepth / 2) {
      uint32_t a[Shape::kWarpM / 16][4];
#pragma unroll
      for (int i = 0; i < Shape::kWarpM / 16; ++i) {
        stage.columns.template load<false>(a[i], warp_m + 16 * i, k);
      }
#pragma unroll
      for (int j = 0; j < Shape::kWarpN / 8; j += 2) {
        const auto multiply = [&](int j, const uint32_t (&b)[2]) {
#pragma unroll
          for (int i = 0; i < Shape::kWarpM / 16; ++i) {
            if constexpr (sizeof(T) == 4) {
              mma_tf32(sums[i][j], a[i], b);
            } else {
              mma<T>(sums[i][j], a[i], b);
            }
          }
        };
        if (j + 1 < Shape::kWarpN / 8) {
          uint32_t b[4];
          stage.rows.template load<true>(b, warp_n + 8 * j, k);
          multiply(j, {b[0], b[1]});
          multiply(j + 1, {b[2], b[3]});
        } else {
          uint32_t b[2];
          stage.rows.template load<true>(b, warp_n + 8 * j, k);
          multiply(j, b);
        }
      }
    }
  }

  block_barrier();  // the sums take the place of the chunks, to leave in the order of the result
#pragma unroll
  for (int i = 0; i < Shape::kWarpM / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kWarpN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int n = warp_n + 8 * j + lane % 4 * 2 + e % 2;
        shared.sums[n][warp_m + 16 * i + lane / 4 + e / 2 * 8] = sums[i][j][e];
      }
    }
  }
  block_barrier();
  finish<T, Shape::kThreads>(p.result, {part.image, part.m, part.n, p.M, p.N}, shared.sums);
}

template <class T, class Layout, class Shape>
void launch_parts(Params p, cudaStream_t stream) {
  const int64_t blocks = parts_of(p.M, Shape::kM) * parts_of(p.N, Shape::kN);
  const int64_t images = p.splits > 0 ? p.splits : p.images;
  const int64_t most = std::max<int64_t>(kMaxBlocks / blocks, 1);
  for (; p.first < images; p.first += most) {
    const int64_t some = std::min(images - p.first, most);
    launch(product_kernel<T, Layout, Shape>, dim3(static_cast<uint32_t>(some * blocks)),
           dim3(Shape::kThreads), sizeof(Shared<T, Layout, Shape>), stream, p);
  }
}

using Tall = Shape<64, 208, 32, 104>;
using Square = Shape<128, 128, 64, 32>;

// Of the result and what a block computes in vain.
template <class Shape>
int64_t computed(const Product& p) {
  return parts_of(p.M, Shape::kM) * Shape::kM * parts_of(p.N, Shape::kN) * Shape::kN;
}

template <class T, class Layout>
void launch_layout(const Product& p, cudaStream_t stream) {
  const Params params{
      {side_of(p.columns, p.M, p.K, sizeof(T)), side_of(p.rows, p.N, p.K, sizeof(T))},
      p.result,
      0,
      p.images,
      p.M,
      p.N,
      p.K,
      p.splits};
  if (computed<Tall>(p) < computed<Square>(p)) {
    launch_parts<T, Layout, Tall>(params, stream);
  } else {
    launch_parts<T, Layout, Square>(params, stream);
  }
}

}  // namespace

void launch_product(const Product& p, cudaStream_t stream) {
  if (p.M == 0 || p.N == 0) return;
  with_type<__half, __nv_bfloat16>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) <= 4) {
      if (!p.columns.sums_rows) {
        launch_layout<T, Layout<false, false>>(p, stream);
      } else if (!p.rows.sums_rows) {
        launch_layout<T, Layout<true, false>>(p, stream);
      } else {
        launch_layout<T, Layout<true, true>>(p, stream);
      }
    }
  });
}

}  // namespace shiftmlp
