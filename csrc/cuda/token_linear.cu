// token_linear is 2 * B * S * T * C operations on bytes(x) + bytes(y) + bytes(residual) of traffic:
// at 196 tokens about 65 operations a byte, so memory decides, and x is to be read once.
// The product is computed transposed, channels as rows and tokens as columns, because x is given
// with its channels dense: a block owns 64 channels of an image and up to 208 output tokens, a warp
// 16 of the channels. x^T and weight^T go through shared memory in chunks of 32 input tokens.
#include "primitives.h"
#include "token_linear.h"

namespace shiftmlp {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 64;  // of a block
constexpr int kDepth = 32;     // input tokens of a chunk
constexpr int kStages = 3;     // chunks in shared memory
// Rows of 16-byte words end in an odd one, so that ldmatrix's eight rows lie in different banks.
constexpr int kPad = 8;

template <class T, int kTokens>
union Shared {
  struct {
    T x[kDepth][kChannels + kPad];
    T weight[kTokens][kDepth + kPad];
  } stages[kStages];
  float sums[kTokens][kChannels + 4];  // after the last chunk; 4: no two lanes store to one bank
};

// The part of the product that a block computes.
struct Tile {
  int64_t b;
  int32_t c, t;  // the first channel and the first output token

  __device__ Tile(const TokenLinearParams& p, int tokens) {
    const uint32_t across = (p.T + tokens - 1) / tokens;
    const uint32_t down = (p.C + kChannels - 1) / kChannels;
    b = blockIdx.x / (across * down);
    c = blockIdx.x / across % down * kChannels;
    t = blockIdx.x % across * tokens;
  }
};

// Starts the copy of kRows x kColumns, kBytes at a time, with zeros beyond (rows, columns).
template <int kBytes, class T, int kRows, int kPitch>
__device__ void load(T (&to)[kRows][kPitch], const T* from, int64_t stride, int rows, int columns) {
  constexpr int kItems = kBytes / sizeof(T);
  constexpr int kPerRow = (kPitch - kPad) / kItems;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kPerRow; i += kThreads) {
    const int row = i / kPerRow, column = i % kPerRow * kItems;
    const bool inside = row < rows && column < columns;
    const T* item = inside ? from + row * stride + column : from;
    if constexpr (kBytes >= 4) {
      cp_async<kBytes>(&to[row][column], item, inside);
    } else {
      to[row][column] = inside ? *item : T(0.0f);
    }
  }
}

template <class T>
__device__ const T* pointer(const void* data, int64_t offset) {
  return static_cast<const T*>(data) + offset;
}

// kAligned: x and weight can be copied 16 and 8 bytes at a time, residual and y accessed 16.
template <class T, int kTokens, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    token_linear_kernel(const __grid_constant__ TokenLinearParams p) {
  auto& shared = shared_memory<Shared<T, kTokens>>();
  const Tile tile(p, kTokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, q = lane % 4;

  const T* const x = pointer<T>(p.x, tile.b * p.x_stride_b + tile.c);
  const T* const weight = pointer<T>(p.weight, tile.t * p.weight_stride);
  const int chunks = (p.S + kDepth - 1) / kDepth;
  float sums[kTokens / 8][4] = {};  // sums[n]: of channels g and g + 8, tokens 8n + 2q and the next
  const auto load_chunk = [&](int chunk) {
    if (chunk < chunks) {
      auto& stage = shared.stages[chunk % kStages];
      const int s = chunk * kDepth;
      load<kAligned ? 16 : 2>(stage.x, x + s * p.x_stride_s, p.x_stride_s, p.S - s, p.C - tile.c);
      load<kAligned ? 8 : 2>(stage.weight, weight + s, p.weight_stride, p.T - tile.t, p.S - s);
    }
    cp_async_commit();  // an empty group too: the wait below counts them
  };
  for (int chunk = 0; chunk < kStages - 1; ++chunk) load_chunk(chunk);

  for (int chunk = 0; chunk < chunks; ++chunk) {
    cp_async_wait<kStages - 2>();
    block_barrier();  // all have their part of this chunk, and are done with the one before
    load_chunk(chunk + kStages - 1);
    const auto& stage = shared.stages[chunk % kStages];
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      // The lane's row of one of four 8 x 8 matrices, which are the quarters of x^T, 16 x 16.
      uint32_t a[4];
      ldmatrix<true>(a, &stage.x[k + lane / 16 * 8 + lane % 8][warp * 16 + lane / 8 % 2 * 8]);
#pragma unroll
      for (int n = 0; n < kTokens; n += 16) {
        uint32_t b[4];
        ldmatrix(b, &stage.weight[n + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        mma<T>(sums[n / 8], a, {b[0], b[1]});
        mma<T>(sums[n / 8 + 1], a, {b[2], b[3]});
      }
    }
  }

  block_barrier();  // the sums take the place of the chunks, to leave in the order of y
#pragma unroll
  for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shared.sums[8 * n + 2 * q + i % 2][warp * 16 + g + i / 2 * 8] = sums[n][i];
    }
  }
  block_barrier();

  constexpr int kItems = kAligned ? 8 : 1;
  struct alignas(kItems * sizeof(T)) Items {
    T at[kItems];
  };
  constexpr int kPerToken = kChannels / kItems;
  for (int i = threadIdx.x; i < kTokens * kPerToken; i += kThreads) {
    const int row = i / kPerToken, column = i % kPerToken * kItems;
    const int t = tile.t + row, c = tile.c + column;
    if (t >= p.T || c >= p.C) continue;
    const auto items = [](const void* data, int64_t offset) {
      return data ? *reinterpret_cast<const Items*>(pointer<T>(data, offset)) : Items{};
    };
    const Items scale = items(p.scale, c);
    const Items residual =
        items(p.residual, tile.b * p.residual_stride_b + t * p.residual_stride_t + c);
    const float bias = p.bias ? float(*pointer<T>(p.bias, t)) : 0.0f;
    Items y;
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      float value = shared.sums[row][column + j] + bias;
      if (p.scale) value *= float(scale.at[j]);
      if (p.residual) value += float(residual.at[j]);
      y.at[j] = T(value);
    }
    const int64_t offset = (tile.b * p.T + t) * p.C + c;
    *reinterpret_cast<Items*>(static_cast<T*>(p.y) + offset) = y;
  }
}

// Whether everything can be accessed as the aligned kernel does.
bool aligned(const TokenLinearParams& p) {
  uint64_t by_8 = p.C | p.x_stride_b | p.x_stride_s;  // elements
  uint64_t bytes = 0;
  for (const void* data : {p.x, p.scale, p.residual, static_cast<const void*>(p.y)}) {
    bytes |= reinterpret_cast<uintptr_t>(data);
  }
  if (p.residual) by_8 |= p.residual_stride_b | p.residual_stride_t;
  const uint64_t by_4 = p.S | p.weight_stride;
  return by_8 % 8 == 0 && by_4 % 4 == 0 && bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.weight) % 8 == 0;
}

// The tile that computes least in vain. Another one reads x again, which is worth about 32 tokens.
int tokens_of_a_tile(int T) {
  const auto cost = [T](int tokens) { return (T + tokens - 1) / tokens * (tokens + 32); };
  return cost(208) < cost(64) ? 208 : 64;
}

}  // namespace

void launch_token_linear(const TokenLinearParams& p, DType dtype, cudaStream_t stream) {
  if (p.B == 0 || p.T == 0 || p.C == 0) return;
  with_type<__half, __nv_bfloat16>(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      with_int<64, 208>(tokens_of_a_tile(p.T), [&](auto tokens) {
        constexpr int kTokens = decltype(tokens)::value;
        const int64_t tiles =
            int64_t{(p.T + kTokens - 1) / kTokens} * ((p.C + kChannels - 1) / kChannels) * p.B;
        const auto kernel = aligned(p) ? token_linear_kernel<T, kTokens, true>
                                       : token_linear_kernel<T, kTokens, false>;
        launch(kernel, dim3(static_cast<uint32_t>(tiles)), dim3(kThreads),
               sizeof(Shared<T, kTokens>), stream, p);
      });
    }
  });
}

}  // namespace shiftmlp
