// What the kernels over tokens share on sm_90a. A tile is 64 channels of an image by its tokens, in
// shared memory as TMA brings it and takes it away: a row for each token, swizzled.
//
// A warp has the 16 channels of its quarter; a lane's, g and g + 8 of those, and its tokens, 2q and
// 2q + 1 of each eight, are those that wgmma leaves it with.
#pragma once

#include "product.h"
#include "wgmma.h"

namespace shiftmlp {

constexpr int kWarpgroup = 128;
constexpr int kChannels = 64;  // of a tile

template <class T>
using Line = T[64];  // a row of a tile, or of a chunk of a weight

template <class T>
__device__ T* swizzled(Line<T>* lines, int row, int column) {
  return &lines[row][(column / 8 ^ row % 8) * 8 + column % 8];
}

// Number i; where there is no vector, `otherwise`.
__device__ inline float number(const Vector& v, int i, float otherwise) {
  if (v.data == nullptr) return otherwise;
  switch (v.dtype) {
    case DType::kFloat16:
      return float(static_cast<const __half*>(v.data)[i]);
    case DType::kBFloat16:
      return float(static_cast<const __nv_bfloat16*>(v.data)[i]);
    default:
      return static_cast<const float*>(v.data)[i];
  }
}

// Of a token, what LayerNorm takes from its channels.
struct alignas(8) Moments {
  float mean, rstd;
};

// Where a lane's row of four 8 x 8 matrices stands, which are 16 tokens of its warp's channels.
struct Place {
  int row, column;

  __device__ Place() {
    const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
    row = lane / 16 * 8 + lane % 8;
    column = warp * 16 + lane / 8 % 2 * 8;
  }
};

// The lane's channels of a tile: 0 is g of its warp's, 1 is g + 8.
__device__ inline int channel_of(int which) {
  return threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4 + which * 8;
}

template <class T>
__device__ void unpack(uint32_t word, float (&to)[2]) {
  union {
    uint32_t word;
    T items[2];
  } pair{word};
  to[0] = float(pair.items[0]), to[1] = float(pair.items[1]);
}

// x^T of a warp's channels and all tokens, as the left operand; normalised if there are moments.
template <class T, int kTokens>
__device__ void load_operand(uint32_t (&a)[kTokens / 16][4], Line<T>* x, const Moments* moments) {
  const Place place;
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    ldmatrix<true>(a[k], swizzled(x, 16 * k + place.row, place.column));
    if (moments == nullptr) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Moments* of = &moments[16 * k + i / 2 * 8 + threadIdx.x % 4 * 2];
      float pair[2];
      unpack<T>(a[k][i], pair);
      a[k][i] = pack<T>((pair[0] - of[0].mean) * of[0].rstd, (pair[1] - of[1].mean) * of[1].rstd);
    }
  }
}

// y = residual + channel.sum * sum + channel.row_sum * token.row_sum + channel.bias * token.bias
struct alignas(8) OfToken {
  float row_sum, bias;
};
struct OfChannel {
  float sum, row_sum, bias;
};

// Puts y into the rows of `tile`, or adds it to what they hold; or to `residual`, (tokens,
// channels) from the tile's first of both on, which the lane finds within the first `tokens` and
// `channels`.
template <class T, int kTokens>
__device__ void store_tile(Line<T>* tile, const float (&sums)[kTokens / 2],
                           const OfChannel (&channels)[2], const OfToken* of_tokens, bool add,
                           const T* residual, int64_t residual_stride, int tokens,
                           int channels_left) {
  const Place place;
  const int q = threadIdx.x % 4 * 2;
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    T* const at = swizzled(tile, t + place.row, place.column);
    uint32_t words[4] = {};
    if (add) ldmatrix<true>(words, at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const OfChannel& c = channels[i % 2];
      float y[2];
      unpack<T>(words[i], y);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = t + i / 2 * 8 + q + j, channel = channel_of(i % 2);
        if (residual && token < tokens && channel < channels_left) {
          y[j] = float(residual[token * residual_stride + channel]);
        }
        const OfToken& of = of_tokens[token];
        y[j] += c.sum * sums[t / 2 + 2 * i + j] + c.row_sum * of.row_sum + c.bias * of.bias;
      }
      words[i] = pack<T>(y[0], y[1]);
    }
    stmatrix<true>(at, words);
  }
}

// (images, tokens, C) as TMA sees it, in boxes of a tile.
template <class T>
TensorMap tiles_map(const Rows& rows, int64_t images, int64_t tokens, int64_t C, int box) {
  return tensor_map<T, 3>(static_cast<const T*>(rows.data), {C, tokens, images},
                          {rows.stride, rows.stride_b}, {kChannels, box, 1}, Swizzle::kSwizzle128);
}

// Whether TMA takes 16-bit rows of C elements: everything is a multiple of 16 bytes, an image
// begins after the rows of the one before, and no stride is too long.
inline bool fits_tiles(const Rows& rows, int64_t C) {
  const int64_t longest = int64_t{1} << 39;  // elements
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
         (C | rows.stride | rows.stride_b) % 8 == 0 && C <= rows.stride &&
         rows.stride <= rows.stride_b && rows.stride_b < longest;
}

__device__ inline bool same(const Rows& a, const Rows& b) {
  return a.data == b.data && a.stride_b == b.stride_b && a.stride == b.stride;
}

}  // namespace shiftmlp
