// A warp loads chunks of x and weight into a ring of two; the warpgroup beside it multiplies them,
// channels as rows and tokens as columns, and hands each place in the ring back.
#include "../cuda/wgmma.h"
#include "hopper_example.h"

namespace shiftmlp {
namespace {

constexpr int kConsumers = 128;
constexpr int kThreads = kConsumers + 32;
constexpr int kChannels = 64;
constexpr int kTokens = 208;
constexpr int kDepth = 64;
constexpr int kStages = 2;

template <class T>
struct Shared {
  // Each row of 128 bytes is swizzled, and 8 of them are aligned to their 1024 bytes.
  struct {
    T x[kDepth][kChannels];
    T weight[kTokens][kDepth];
  } stages[kStages];
  T y[kTokens][kChannels];
  Mbarrier full[kStages], empty[kStages];
};

struct Maps {
  TensorMap x, weight, y;
};

// Where 16-byte word `column` / 8 of a row stands.
template <class T>
__device__ T* swizzled(T (*rows)[64], int row, int column) {
  return &rows[row][(column / 8 ^ row % 8) * 8];
}

template <class T>
__device__ void produce(Shared<T>& shared, const Maps& maps, int chunks, int c, int b) {
  for (int chunk = 0; chunk < chunks; ++chunk) {
    auto& stage = shared.stages[chunk % kStages];
    Mbarrier& full = shared.full[chunk % kStages];
    mbarrier_wait(shared.empty[chunk % kStages], chunk / kStages % 2 ^ 1);
    mbarrier_arrive_expect(full, sizeof stage);
    tma_load(stage.x, maps.x, full, {c, chunk * kDepth, b});
    tma_load(stage.weight, maps.weight, full, {chunk * kDepth, 0});
  }
}

template <class T, bool kThroughRegisters>
__device__ void consume(Shared<T>& shared, const Maps& maps, int chunks, int c, int b) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // The lane's row and column of one of the four 8 x 8 matrices of a warp's 16 x 16.
  const int row = lane / 16 * 8 + lane % 8, column = warp * 16 + lane / 8 % 2 * 8;
  float sums[kTokens / 2];
  for (int chunk = 0; chunk < chunks; ++chunk) {
    auto& stage = shared.stages[chunk % kStages];
    mbarrier_wait(shared.full[chunk % kStages], chunk / kStages % 2);
    uint32_t a[kDepth / 16][4];
    if constexpr (kThroughRegisters) {
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        ldmatrix<true>(a[k / 16], swizzled(stage.x, k + row, column));
      }
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const bool accumulate = chunk > 0 || k > 0;
      const uint64_t weight = wgmma_operand(&stage.weight[0][k]);
      if constexpr (kThroughRegisters) {
        wgmma<T, kTokens>(sums, a[k / 16], weight, accumulate);
      } else {
        wgmma<T, kTokens, Major::kMN>(sums, wgmma_operand(stage.x[k]), weight, accumulate);
      }
    }
    wgmma_commit();
    wgmma_wait<0>(sums);
    mbarrier_arrive(shared.empty[chunk % kStages]);
  }
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    const float* d = &sums[t / 2];
    const uint32_t y[4] = {pack<T>(d[0], d[1]), pack<T>(d[2], d[3]), pack<T>(d[4], d[5]),
                           pack<T>(d[6], d[7])};
    stmatrix<true>(swizzled(shared.y, t + row, column), y);
  }
  async_proxy_fence();
  named_barrier(1, kConsumers);
  if (threadIdx.x == 0) {
    tma_store(maps.y, {c, 0, b}, shared.y);
    tma_store_commit();
    tma_store_wait_read<0>();
  }
}

template <class T, bool kThroughRegisters>
__global__ void __launch_bounds__(kThreads)
    hopper_example_kernel(const __grid_constant__ Maps maps, int S) {
  auto& shared = shared_memory<Shared<T>>();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(shared.full[stage], 1);
      mbarrier_init(shared.empty[stage], kConsumers);
    }
    mbarrier_init_fence();
  }
  block_barrier();
  const int chunks = (S + kDepth - 1) / kDepth;
  const int c = blockIdx.x * kChannels, b = blockIdx.y;
  if (threadIdx.x < kConsumers) {
    consume<T, kThroughRegisters>(shared, maps, chunks, c, b);
  } else if (threadIdx.x == kConsumers) {
    produce(shared, maps, chunks, c, b);
  }
}

template <class T>
void launch_for(const HopperExampleParams& p, cudaStream_t stream) {
  const auto map = [&p](const void* data, int64_t tokens, int box) {
    return tensor_map<T, 3>(static_cast<const T*>(data), {p.C, tokens, p.B}, {p.C, tokens * p.C},
                            {kChannels, box, 1}, Swizzle::kSwizzle128);
  };
  const Maps maps{map(p.x, p.S, kDepth),
                  tensor_map<T, 2>(static_cast<const T*>(p.weight), {p.S, p.T}, {p.weight_stride},
                                   {kDepth, kTokens}, Swizzle::kSwizzle128),
                  map(p.y, p.T, kTokens)};
  const auto kernel =
      p.x_through_registers ? hopper_example_kernel<T, true> : hopper_example_kernel<T, false>;
  launch(kernel, dim3((p.C + kChannels - 1) / kChannels, p.B), dim3(kThreads), sizeof(Shared<T>),
         stream, maps, p.S);
}

}  // namespace

void launch_hopper_example(const HopperExampleParams& p, DType dtype, cudaStream_t stream) {
  dtype == DType::kFloat16 ? launch_for<__half>(p, stream) : launch_for<__nv_bfloat16>(p, stream);
}

}  // namespace shiftmlp
