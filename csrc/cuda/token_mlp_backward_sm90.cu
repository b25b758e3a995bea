// The gradients of token_mlp are 10 * B * S * D * C operations: the hidden again, and two products
// for each weight. This kernel does three of the five, for dx, and leaves the hidden and its
// gradient in memory for those of the weights: for 256 images of 768 channels with 196 tokens and
// 384 hidden units 89 GFLOP, 90 us of an H200's tensor cores (990 TFLOP/s), on 610 MB, 127 us of
// its memory (4.8 TB/s).
//
// A cluster of blocks has all channels of an image, each block 128 of them, so that LayerNorm's
// adjoint ends here too. A warpgroup has 64 channels and takes the hidden units in chunks of 64: it
// computes their sums, and those of their gradient, from norm(x) and dy in shared memory, and
// multiplies the gradient by w1 out of registers. Two warpgroups take turns at the tensor cores.
// The blocks load boxes of the weights in turns, each for the whole cluster.
#include "token_mlp_backward_sm90.h"

namespace shiftmlp {
namespace {

using Params = TokenMlpBackwardSm90Params;

// From a chunk's sums and those of its gradient: the hidden into `lines`, and its gradient as an
// operand. Of db1, which has `left` units from the chunk on, a part.
template <class T, Activation kActivation>
__device__ void activate_chunk(Line<T>* lines, uint32_t (&dhidden)[kChunk / 16][4],
                               const float (&sums)[kChunk / 2], const float (&dsums)[kChunk / 2],
                               const float (&scale)[2], const float* b1, int left, float* db1) {
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4 * 2;
  const Fragment fragment;
  float values[8];
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    uint32_t hidden[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float a[2], da[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = 8 * k + 2 * n + j;
        const float inner = sums[at] + b1[16 * k + n / 2 * 8 + q + j];
        a[j] = activate<kActivation>(inner);
        // Rounded as if stored, and so below: no gradient tells by which kernels it was computed.
        const float slope_of = float(T(inner));
        da[j] = scale[n % 2] * activate_backward<kActivation>(dsums[at], slope_of);
      }
      hidden[n] = pack<T>(a[0], a[1]), dhidden[k][n] = pack<T>(da[0], da[1]);
      unpack<T>(dhidden[k][n], da);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& sum = values[k % 2 * 4 + n / 2 * 2 + j];
        sum = n % 2 == 0 ? da[j] : sum + da[j];
      }
    }
    stmatrix<true>(swizzled(lines, 16 * k + fragment.row, fragment.column), hidden);
    if (k % 2 == 0 || !db1) continue;
    const float sum = sum_over_channels(values);
    const int unit = 16 * (k - 1 + g / 4) + g / 2 % 2 * 8 + q + g % 2;
    if (unit < left) db1[unit] = sum;
  }
}

template <class T, int kDepth, int kTokens>
__device__ void consume(BackwardShared<T, kDepth, kTokens>& shared, const BackwardMaps& maps,
                        const Params& p, int cluster) {
  const int group = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
  const int warp = thread / 32, c = channel(group), chunks = chunks_of(p.D), own = 3 + group;
  const auto take_turn = [&] { named_barrier(1 + group, kConsumers); };
  const auto pass_turn = [&] { named_barrier_arrive(2 - group, kConsumers); };
  for (int j = threadIdx.x; j < chunks * kChunk; j += kConsumers) {
    shared.b1()[j] = j < p.D ? read(p.b1, j) : 0.0f;  // the first turns part this from its reading
  }
  if (group == 1) pass_turn();

  Line<T>(&lines)[kChunk] = shared.staged[group].lines;
  Events& events = shared.events[group];
  const auto clear_lines = [&] {
    if (thread == 0) tma_store_wait_read<0>();
    named_barrier(own, kWarpgroup);  // the lines before these are stored
  };
  const auto store_lines = [&](const TensorMap& map, int b, int j) {
    async_proxy_fence();
    named_barrier(own, kWarpgroup);
    if (thread > 0) return;
    tma_store(map, {c, j, b}, lines);
    tma_store_commit();
  };

  int box = 0;  // of w1, of the next chunk
  for_each_image(p, cluster, [&](int b, int turn) {
    const auto scale_of = [&](int channel) {
      return channel < p.C ? read(p.scale, channel, 1.0f) : 0.0f;
    };
    const float scale[2] = {scale_of(c + channel_of(0)), scale_of(c + channel_of(1))};
    // Set to zero, or else those of the image before would be kept until here.
    float sums[kChunk / 2] = {}, dsums[kChunk / 2] = {}, dnormed[kTokens / 2] = {};
    uint32_t dhidden[kChunk / 16][4];
    const auto box_at = [&](int number) -> Line<T>(&)[kDepth] {
      return shared.boxes[number % shared.kBoxes];
    };
    const auto multiply_by_weights = [&] {
      shared.wait(box), shared.wait(box + 1);
      uint32_t tiles[1] = {uint32_t(group)};
      forget(tiles);  // or else all their operands would be kept in registers for the next chunk
      Line<T>* const normed = shared.normed[tiles[0]];
      Line<T>* const dy = shared.dy[tiles[0]];
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        wgmma<T, kChunk, Major::kMN, Major::kMN>(sums, wgmma_operand(normed[k]),
                                                 wgmma_operand(box_at(box)[k]), k > 0);
      }
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        wgmma<T, kChunk, Major::kMN, Major::kMN>(dsums, wgmma_operand(dy[k]),
                                                 wgmma_operand(box_at(box + 1)[k]), k > 0);
      }
      wgmma_commit();
    };

    const auto multiply_by_w1 = [&](int chunk) {
      wgmma_fence(dhidden);
#pragma unroll
      for (int k = 0; k < kChunk; k += 16) {
        wgmma<T, kTokens>(dnormed, dhidden[k / 16], wgmma_operand(&box_at(box)[0][k]),
                          chunk + k > 0);
      }
      wgmma_commit();
      box += 2;
    };
    const auto activate = [&](int chunk) {
      shared.hand_back(box + 1, cluster);
      if (chunk == chunks - 1 && thread % 32 == 0) mbarrier_arrive(events.read);
      const int j = chunk * kChunk;
      const int part = b * parts_of_b1(p.C) + c / kChannels * 4 + warp;
      float* const db1 = p.db1 && c < p.C ? p.db1 + int64_t{part} * p.D + j : nullptr;
      if (chunk == 0 && p.mean) mbarrier_wait(shared.exchange.read, turn ^ 1);
      clear_lines();
      with_activation(p.activation, [&](auto constant) {
        activate_chunk<T, decltype(constant)::value>(lines, dhidden, sums, dsums, scale,
                                                     shared.b1() + j, p.D - j, db1);
      });
      store_lines(maps.hidden, b, j);
    };
    const auto store_dhidden = [&](int chunk) {
      shared.hand_back(box - 2, cluster);
      clear_lines();
      const Fragment fragment;
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) {
        stmatrix<true>(swizzled(lines, 16 * k + fragment.row, fragment.column), dhidden[k]);
      }
      store_lines(maps.dhidden, b, chunk * kChunk);
    };

    // No product stands in a branch: nvcc would have it waited for before the next one.
    mbarrier_wait(events.normed, turn);
    mbarrier_wait(events.dy, turn);
    take_turn();
    multiply_by_weights();
    pass_turn();
    wgmma_wait<0>(sums, dsums);
    for (int chunk = 0; chunk < chunks - 1; ++chunk) {
      activate(chunk);
      take_turn();
      multiply_by_w1(chunk);
      multiply_by_weights();
      pass_turn();
      wgmma_wait<1>();
      store_dhidden(chunk);
      wgmma_wait<0>(sums, dsums);
    }
    activate(chunks - 1);
    take_turn();
    multiply_by_w1(chunks - 1);
    pass_turn();
    wgmma_wait<0>(dnormed);
    store_dhidden(chunks - 1);
    if (has_norm(p)) mbarrier_wait(events.x, turn);
    clear_lines();
    const NormOf norm{p.mean, p.rstd, p.norm_weight, p.S, p.C, p.dnorm_weight, p.dnorm_bias};
    // Its channels anew: what is kept beside the products' sums has no registers.
    finish_norm<T, kTokens>(shared.dy[group], shared.staged, shared.exchange, turn, norm, b,
                            channel(group), dnormed, cluster, own);
    async_proxy_fence();
    mbarrier_arrive(events.dx);
  });
  if (group == 0) take_turn();  // which the other one passed for nothing
}

template <class T, int kDepth, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    token_mlp_backward_sm90_kernel(const __grid_constant__ BackwardMaps maps,
                                   const __grid_constant__ Params p, int cluster) {
  auto& shared = shared_memory<BackwardShared<T, kDepth, kTokens>>();
  if (threadIdx.x == 0) {
    shared.init(cluster);
    mbarrier_init_fence();
  }
  cluster_barrier();
  if (threadIdx.x < kConsumers) {
    take_registers<240>();
    consume(shared, maps, p, cluster);
  } else {
    give_registers<24>();
    const int warp = (threadIdx.x - kConsumers) / 32;
    if (threadIdx.x % 32 == 0) {
      if (warp < 2) copy(shared, maps, p, cluster, warp);
      if (warp == 2) stream(shared, maps, p, cluster);
    }
  }
  cluster_barrier();  // the others hand places back to this block, and read its sums, until here
}

int blocks_of(const Params& p) { return (p.C + 2 * kChannels - 1) / (2 * kChannels); }

template <class T, int kDepth, int kTokens>
size_t shared_bytes(const Params& p) {
  return sizeof(BackwardShared<T, kDepth, kTokens>) + chunks_of(p.D) * kChunk * sizeof(float);
}

template <class T, int kDepth, int kTokens>
void launch_for(const Params& p, cudaStream_t stream) {
  const auto map_of = [&](const Rows& rows, int32_t count, int box) {
    return tile_map<T>(rows, p.B, count, p.C, box);
  };
  const auto map_of_result = [&](void* data, int32_t count, int box) {
    return map_of({data, int64_t{count} * p.C, p.C}, count, box);
  };
  const auto map_of_weight = [&](const void* w, int64_t stride, int32_t rows) {
    return tensor_map<T, 2>(static_cast<const T*>(w), {p.D, rows}, {stride}, {kChunk, kDepth},
                            Swizzle::kSwizzle128);
  };
  const BackwardMaps maps{map_of(p.normed, p.S, kDepth),
                          map_of(p.dy, p.T, kDepth),
                          has_norm(p) ? map_of(p.x, p.S, kDepth) : TensorMap{},
                          map_of_result(p.dx, p.S, kDepth),
                          map_of_result(p.hidden, p.D, kChunk),
                          map_of_result(p.dhidden, p.D, kChunk),
                          map_of_weight(p.workspace, p.D, p.S),
                          map_of_weight(p.w2, p.w2_stride, p.T)};
  launch_pack_w1(p, stream);
  const auto kernel = token_mlp_backward_sm90_kernel<T, kDepth, kTokens>;
  const int cluster = blocks_of(p);
  const size_t bytes = shared_bytes<T, kDepth, kTokens>(p);
  const int64_t most = active_clusters(kernel, cluster, dim3(kThreads), bytes);
  launch_clusters(kernel, cluster, dim3(std::min(p.B, most) * cluster), dim3(kThreads), bytes,
                  stream, maps, p, cluster);
}

// Calls f with T, the lines of a tile, and the tokens of dx.
template <class F>
void with_tile(const Params& p, const F& f) {
  const int longest = std::max(p.S, p.T);
  const auto with_tokens = [&](auto type) {
    if (longest <= 64) return f(type, Int<64>{}, Int<64>{});
    if (longest <= 144) return f(type, Int<144>{}, Int<144>{});
    f(type, Int<208>{}, Int<200>{});
  };
  p.dtype == DType::kFloat16 ? with_tokens(Type<__half>{}) : with_tokens(Type<__nv_bfloat16>{});
}

}  // namespace

bool fits_sm90(const TokenMlpBackwardSm90Params& p) {
  const Rows w2{p.w2, p.T * p.w2_stride, p.w2_stride}, of_x{p.dx, int64_t{p.S} * p.C, p.C};
  if (!is_hopper() || (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16)) return false;
  if (p.S < 1 || p.S > 200 || p.T < 1 || p.T > 208 || p.D < 1 || p.D > 1 << 20) return false;
  if (p.C < 1 || blocks_of(p) > kMostBlocks) return false;
  if (p.B < 1 || p.B > 1 << 24 || p.B * chunks_of(p.D) > 1 << 29) return false;
  for (const Rows& rows : {p.normed, p.dy, of_x}) {
    if (!fits_tma(rows, p.C)) return false;
  }
  if (!fits_tma(w2, p.D) || (has_norm(p) && !fits_tma(p.x, p.C))) return false;
  bool fits = false;
  with_tile(p, [&](auto type, auto depth, auto tokens) {
    using T = typename decltype(type)::type;
    fits = shared_bytes<T, decltype(depth)::value, decltype(tokens)::value>(p) <= kSharedLimit;
  });
  return fits;
}

void launch_token_mlp_backward_sm90(const TokenMlpBackwardSm90Params& p, cudaStream_t stream) {
  with_tile(p, [&](auto type, auto depth, auto tokens) {
    using T = typename decltype(type)::type;
    launch_for<T, decltype(depth)::value, decltype(tokens)::value>(p, stream);
  });
}

}  // namespace shiftmlp
