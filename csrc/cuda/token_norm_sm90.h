// The adjoint of the norm over the channels, where the gradient of what it gave stands in a
// warpgroup's sums: 64 channels of an image by its tokens, as token_tiles_sm90.h has them. Of
// LayerNorm it takes sums over all channels: the blocks of a cluster have those of an image.
#pragma once

#include "token_tiles_sm90.h"

namespace shiftmlp {

// A warpgroup's part of it, while it finishes a tile.
template <int kTokens>
struct Ends {
  Moments moments[kTokens];
  Floats2 sums[4][kTokens];  // of each warp; then of all four, and the means of the whole image
};

// The sum over lanes of the same q, of the value whose number is the lane's g.
__device__ inline float sum_over_channels(float (&values)[8]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = lane & 4 * half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? values[i + half] : values[i];
      const float given = upper ? values[i] : values[i + half];
      values[i] = kept + shuffle_xor(given, 4 * half);
    }
  }
  return values[0];
}

// Calls f(token, which channel, index of the sum, x) for what a lane has of 16 tokens from t on.
template <class T, int kTokens, class F>
__device__ void for_each_of(const uint32_t (&words)[4], int t, const F& f) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if (t + n / 2 * 8 >= kTokens) continue;  // the last eight of sixteen
    float x[2];
    unpack<T>(words[n], x);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      f(t + n / 2 * 8 + threadIdx.x % 4 * 2 + j, n % 2, t / 2 + 2 * n + j, x[j]);
    }
  }
}

// What the norm's adjoint needs besides an image's sums. Without moments: an affine norm.
struct NormOf {
  const float *mean, *rstd;  // of all tokens
  Vector weight;
  int S, C;
  float *dweight, *dbias;  // for each image a row of the channels' sums, or null

  __device__ float weight_of(int c) const { return c < C ? read(weight, c, 1.0f) : 0.0f; }
};

// The sums over all channels meet: `told` has all warpgroups of the cluster arrive when theirs are
// there, `read` when they have read the others'.
struct Exchange {
  Mbarrier told, read;

  __device__ void init(int cluster) {
    mbarrier_init(told, 2 * cluster);
    mbarrier_init(read, 2 * cluster);
  }
};

// By a warpgroup, whose own barrier is `barrier`: dx takes the place of x in `lines`. `staged` has
// the Ends of both warpgroups.
template <class T, int kTokens, class Staged>
__device__ void finish_norm(Line<T>* lines, Staged (&staged)[2], Exchange& exchange, int turn,
                            const NormOf& norm, int image, int c, const float (&sums)[kTokens / 2],
                            int cluster, int barrier) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  Ends<kTokens>& mine = staged[threadIdx.x / kWarpgroup].ends;
  const auto for_each_token = [&](const auto& f) {
#pragma unroll
    for (int first = 0; first < kTokens; first += kWarpgroup) {
      if (first + thread < kTokens) f(first + thread);
    }
  };
  for_each_token([&](int s) {
    const bool inside = norm.mean && s < norm.S;
    const int64_t at = int64_t{image} * norm.S + s;
    mine.moments[s] = inside ? Moments{norm.mean[at], norm.rstd[at]} : Moments{0.0f, 1.0f};
  });
  named_barrier(barrier, kWarpgroup);
  const float weight[2] = {norm.weight_of(c + channel_of(0)), norm.weight_of(c + channel_of(1))};
  const Fragment fragment;
  const auto normal = [&](int token, float x) {
    const Moments& of = mine.moments[token];
    return (x - of.mean) * of.rstd;
  };

  uint32_t gradients[kTokens / 4];  // as if stored, like any gradient inside
#pragma unroll
  for (int i = 0; i < kTokens / 4; ++i) gradients[i] = pack<T>(sums[2 * i], sums[2 * i + 1]);
  const auto gradient = [&](int index) {
    float pair[2];
    unpack<T>(gradients[index / 2], pair);
    return pair[index % 2];
  };

  float of_channel[2][2] = {};  // of the gradient, and of that times the normal x
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    uint32_t words[4];
    ldmatrix<true>(words, swizzled(lines, t + fragment.row, fragment.column));
    float values[8] = {};
    for_each_of<T, kTokens>(words, t, [&](int token, int channel, int index, float x) {
      const float d = gradient(index), along = d * normal(token, x);
      float* const of_token = &values[(token - t) / 8 * 4 + token % 2 * 2];
      of_channel[channel][0] += d, of_channel[channel][1] += along;
      of_token[0] += weight[channel] * d, of_token[1] += weight[channel] * along;
    });
    const float sum = sum_over_channels(values);
    const int g = lane / 4, token = t + g / 4 * 8 + lane % 4 * 2 + g / 2 % 2;
    if (token >= kTokens) continue;
    (g % 2 ? mine.sums[warp][token].second : mine.sums[warp][token].first) = sum;
  }
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const int channel = c + channel_of(which);
    float (&of)[2] = of_channel[which];
    for (int mask = 1; mask < 4; mask *= 2) {
      of[0] += shuffle_xor(of[0], mask), of[1] += shuffle_xor(of[1], mask);
    }
    if (lane % 4 > 0 || channel >= norm.C) continue;
    const int64_t at = int64_t{image} * norm.C + channel;
    if (norm.dbias) norm.dbias[at] = of[0];
    if (norm.dweight) norm.dweight[at] = of[1];
  }

  if (norm.mean) {
    named_barrier(barrier, kWarpgroup);
    for_each_token([&](int s) {
      for (int w = 1; w < 4; ++w) {
        mine.sums[0][s].first += mine.sums[w][s].first;
        mine.sums[0][s].second += mine.sums[w][s].second;
      }
    });
    named_barrier(barrier, kWarpgroup);
    if (thread < cluster) mbarrier_release_in(thread, exchange.told);
    mbarrier_wait_in_cluster(exchange.told, turn);
    for_each_token([&](int s) {
      Floats2 total{};
      for (int part = 0; part < 2 * cluster; ++part) {
        const Floats2 of = read_in(part / 2, staged[part % 2].ends.sums[0][s]);
        total.first += of.first, total.second += of.second;
      }
      mine.sums[1][s] = {total.first / norm.C, total.second / norm.C};
    });
  }
  named_barrier(barrier, kWarpgroup);
  if (norm.mean && thread < cluster) mbarrier_arrive_in(thread, exchange.read);
  forget(gradients);
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    T* const at = swizzled(lines, t + fragment.row, fragment.column);
    uint32_t words[4];
    ldmatrix<true>(words, at);
    float dx[4][2] = {};
    for_each_of<T, kTokens>(words, t, [&](int token, int channel, int index, float x) {
      const Floats2 means = norm.mean ? mine.sums[1][token] : Floats2{};
      const float d = weight[channel] * gradient(index);
      const float of_x = means.first + normal(token, x) * means.second;
      dx[(token - t) / 8 * 2 + channel][token % 2] =
          norm.mean ? (d - of_x) * mine.moments[token].rstd : d;
    });
#pragma unroll
    for (int n = 0; n < 4; ++n) words[n] = pack<T>(dx[n][0], dx[n][1]);
    stmatrix<true>(at, words);
  }
}

}  // namespace shiftmlp
