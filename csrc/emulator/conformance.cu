#include "../cuda/wgmma.h"
#include "../dispatch.h"
#include "conformance.h"

namespace shiftmlp {
namespace {

struct alignas(16) Row {
  uint16_t at[8];
};

template <int kCount, bool kTranspose>
__global__ void ldmatrix_kernel(const Row* rows, uint32_t* out) {
  auto& shared = shared_memory<Row[32]>();
  shared[threadIdx.x] = rows[threadIdx.x];
  warp_barrier();
  uint32_t to[kCount];
  ldmatrix<kTranspose>(to, &shared[threadIdx.x % (8 * kCount)]);
  for (int i = 0; i < kCount; ++i) out[threadIdx.x * kCount + i] = to[i];
}

template <int kCount, bool kTranspose>
__global__ void stmatrix_kernel(const uint32_t* fragments, Row* out) {
  auto& shared = shared_memory<Row[32]>();
  uint32_t from[kCount];
  for (int i = 0; i < kCount; ++i) from[i] = fragments[threadIdx.x * kCount + i];
  stmatrix<kTranspose>(&shared[threadIdx.x % (8 * kCount)], from);
  warp_barrier();
  if (threadIdx.x < 8 * kCount) out[threadIdx.x] = shared[threadIdx.x];
}

template <class T>
__global__ void mma_kernel(const T* a, const T* b, float* out) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  const auto word = [q](const T* row, int k) {
    return pack<T>(float(row[k + 2 * q]), float(row[k + 2 * q + 1]));
  };
  const T *const above = a + g * 16, *const below = above + 8 * 16;
  const uint32_t a_part[4] = {word(above, 0), word(below, 0), word(above, 8), word(below, 8)};
  const uint32_t b_part[2] = {word(b + g * 16, 0), word(b + g * 16, 8)};
  float d[4] = {};
  mma<T>(d, a_part, b_part);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}

__global__ void mma_tf32_kernel(const float* a, const float* b, float* out) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  const auto a_at = [&](int row, int k) { return to_tf32(a[row * 8 + k]); };
  const uint32_t a_part[4] = {a_at(g, q), a_at(g + 8, q), a_at(g, q + 4), a_at(g + 8, q + 4)};
  const uint32_t b_part[2] = {to_tf32(b[q * 8 + g]), to_tf32(b[(q + 4) * 8 + g])};
  float d[4] = {};
  mma_tf32(d, a_part, b_part);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}

__global__ void approximations_kernel(const float* a, float* out, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    out[i] = exp2_approx(a[i]);
    out[n + i] = reciprocal_approx(a[i]);
  }
}

template <int kBytes>
struct alignas(kBytes) Piece {
  uint32_t at[kBytes / 4];
};

template <int kBytes>
__global__ void cp_async_kernel(const Piece<kBytes>* a, Piece<kBytes>* out) {
  auto& shared = shared_memory<Piece<kBytes>[32]>();
  const int lane = threadIdx.x;
  cp_async<kBytes>(&shared[lane], &a[lane], lane % 3 != 0);
  cp_async_commit();
  cp_async_wait<0>();
  warp_barrier();
  out[lane ^ 1] = shared[lane ^ 1];
}

__global__ void store_global_kernel(const Piece<16>* a, Piece<16>* out) {
  store_global(&out[threadIdx.x ^ 1], a[threadIdx.x].at);
}

__global__ void shuffles_kernel(const uint32_t* a, uint32_t* out) {
  const int lane = threadIdx.x;
  out[lane] = shuffle(a[lane], 5);
  out[32 + lane] = shuffle_xor(a[lane], 9);
}

template <int kRank>
struct Place {
  int at[kRank];
};

template <int kRank>
__global__ void tma_kernel(const __grid_constant__ TensorMap from,
                           const __grid_constant__ TensorMap to, Place<kRank> place, int bytes,
                           uint32_t* out) {
  struct Shared {
    uint32_t box[1024];
    Mbarrier full;
  };
  auto& shared = shared_memory<Shared>();
  if (threadIdx.x == 0) {
    mbarrier_init(shared.full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(shared.full, bytes);
    tma_load(shared.box, from, shared.full, place.at);
  }
  block_barrier();
  mbarrier_wait(shared.full, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += 32) out[i] = shared.box[i];
  if (threadIdx.x == 0) {
    tma_store(to, place.at, shared.box);
    tma_store_commit();
    tma_store_wait_read<0>();
  }
}

template <int kRank>
void launch_tma_for(const Conformance& p, const int64_t (&sizes)[kRank], const int (&box)[kRank],
                    const int* at, cudaStream_t stream) {
  int64_t strides[kRank - 1] = {sizes[0]};
  for (int i = 1; i < kRank - 1; ++i) strides[i] = strides[i - 1] * sizes[i];
  Place<kRank> place;
  int bytes = sizeof(float);
  for (int i = 0; i < kRank; ++i) place.at[i] = at[i], bytes *= box[i];
  const auto map = [&](const void* data) {
    return tensor_map(static_cast<const float*>(data), sizes, strides, box, Swizzle::kNone);
  };
  launch(tma_kernel<kRank>, dim3(1), dim3(32), 4096 + sizeof(Mbarrier), stream, map(p.a), map(p.b),
         place, bytes, static_cast<uint32_t*>(p.out));
}

// 64 values of a row, in the order of the 128-byte swizzle.
template <class T>
struct alignas(128) Line {
  T at[64];

  __device__ T& swizzled(int row, int i) { return at[(i / 8 ^ row % 8) * 8 + i % 8]; }
};

template <class T, int kN, Major kMajor, bool kThroughRegisters>
__global__ void wgmma_kernel(const T* a, const T* b, float* out) {
  constexpr bool kK = kMajor == Major::kK;
  constexpr int kBlocks = kK ? 1 : (kN + 63) / 64;  // of 64 columns, 16 lines each
  struct Shared {
    Line<T> a[kK ? 64 : 16];
    Line<T> b[kK ? kN : 16 * kBlocks];
  };
  auto& shared = shared_memory<Shared>();
  const auto put = [](Line<T>* lines, int row, int k, T value) {
    const int line = kK ? row : row / 64 * 16 + k;
    lines[line].swizzled(line, kK ? k : row % 64) = value;
  };
  for (int i = threadIdx.x; i < 64 * 16; i += 128) put(shared.a, i / 16, i % 16, a[i]);
  for (int i = threadIdx.x; i < kN * 16; i += 128) put(shared.b, i / 16, i % 16, b[i]);
  async_proxy_fence();
  block_barrier();
  float d[kN / 2];
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  const uint64_t b_operand = wgmma_operand(shared.b, 1024, 2048);
  uint32_t a_part[1][4];  // until the product has been waited for
  if constexpr (kThroughRegisters) {
    for (int i = 0; i < 4; ++i) {
      const T* const at = &a[(row + i % 2 * 8) * 16 + column + i / 2 * 8];
      a_part[0][i] = pack<T>(float(at[0]), float(at[1]));
    }
    wgmma_fence(a_part);
    wgmma<T, kN, kMajor>(d, a_part[0], b_operand, false);
  } else {
    wgmma_fence();
    wgmma<T, kN, kMajor, kMajor>(d, wgmma_operand(shared.a), b_operand, false);
  }
  wgmma_commit();
  wgmma_wait<0>(d);
  for (int i = 0; i < kN / 2; ++i) {
    out[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + column + i % 2] = d[i];
  }
}

__global__ void __launch_bounds__(256, 1) turns_kernel(int rounds, uint32_t* out) {
  auto& written = shared_memory<uint32_t>();
  const int group = threadIdx.x / 128, other = 1 - group;
  if (threadIdx.x == 0) written = 0;
  block_barrier();
  if (group == 0) {
    take_registers<240>();
  } else {
    give_registers<24>();
    named_barrier_arrive(1 + other, 256);
  }
  for (int round = 0; round < rounds; ++round) {
    named_barrier(1 + group, 256);
    if (threadIdx.x % 128 == 0) out[written++] = group;
    const bool last = group == 1 && round == rounds - 1;
    if (!last) named_barrier_arrive(1 + other, 256);
  }
}

template <class F>
void with_shape(int count, bool transpose, const F& f) {
  with_int<1, 2, 4>(count, [&](auto count) {
    with_int<0, 1>(transpose, [&](auto transpose) { f(count, transpose); });
  });
}

}  // namespace

void launch_ldmatrix(const Conformance& p, int count, bool transpose, cudaStream_t stream) {
  with_shape(count, transpose, [&](auto count, auto transpose) {
    launch(ldmatrix_kernel<decltype(count)::value, decltype(transpose)::value>, dim3(1), dim3(32),
           sizeof(Row[32]), stream, static_cast<const Row*>(p.a), static_cast<uint32_t*>(p.out));
  });
}

void launch_stmatrix(const Conformance& p, int count, bool transpose, cudaStream_t stream) {
  with_shape(count, transpose, [&](auto count, auto transpose) {
    launch(stmatrix_kernel<decltype(count)::value, decltype(transpose)::value>, dim3(1), dim3(32),
           sizeof(Row[32]), stream, static_cast<const uint32_t*>(p.a), static_cast<Row*>(p.out));
  });
}

void launch_mma(const Conformance& p, DType dtype, cudaStream_t stream) {
  const auto launch_for = [&](auto type) {
    using T = typename decltype(type)::type;
    launch(mma_kernel<T>, dim3(1), dim3(32), 0, stream, static_cast<const T*>(p.a),
           static_cast<const T*>(p.b), static_cast<float*>(p.out));
  };
  dtype == DType::kFloat16 ? launch_for(Type<__half>{}) : launch_for(Type<__nv_bfloat16>{});
}

void launch_mma_tf32(const Conformance& p, cudaStream_t stream) {
  launch(mma_tf32_kernel, dim3(1), dim3(32), 0, stream, static_cast<const float*>(p.a),
         static_cast<const float*>(p.b), static_cast<float*>(p.out));
}

void launch_approximations(const Conformance& p, int n, cudaStream_t stream) {
  launch(approximations_kernel, dim3(1), dim3(32), 0, stream, static_cast<const float*>(p.a),
         static_cast<float*>(p.out), n);
}

void launch_cp_async(const Conformance& p, int bytes, cudaStream_t stream) {
  with_int<4, 8, 16>(bytes, [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value;
    launch(cp_async_kernel<kBytes>, dim3(1), dim3(32), 32 * kBytes, stream,
           static_cast<const Piece<kBytes>*>(p.a), static_cast<Piece<kBytes>*>(p.out));
  });
}

void launch_store_global(const Conformance& p, cudaStream_t stream) {
  launch(store_global_kernel, dim3(1), dim3(32), 0, stream, static_cast<const Piece<16>*>(p.a),
         static_cast<Piece<16>*>(p.out));
}

void launch_shuffles(const Conformance& p, cudaStream_t stream) {
  launch(shuffles_kernel, dim3(1), dim3(32), 0, stream, static_cast<const uint32_t*>(p.a),
         static_cast<uint32_t*>(p.out));
}

void launch_tma(const Conformance& p, int rank, const int* at, cudaStream_t stream) {
  if (rank == 2) {
    launch_tma_for<2>(p, {20, 6}, {8, 4}, at, stream);
  } else if (rank == 3) {
    launch_tma_for<3>(p, {12, 6, 4}, {8, 4, 2}, at, stream);
  } else {
    launch_tma_for<4>(p, {8, 5, 4, 3}, {8, 3, 2, 2}, at, stream);
  }
}

void launch_wgmma(const Conformance& p, DType dtype, int n, bool k_major, bool a_through_registers,
                  cudaStream_t stream) {
  const auto launch_for = [&](auto n, auto type) {
    constexpr int kN = decltype(n)::value, kLines = 64 + (kN > 64 ? kN : 64);  // at least
    using T = typename decltype(type)::type;
    const auto kernel = a_through_registers ? (k_major ? wgmma_kernel<T, kN, Major::kK, true>
                                                       : wgmma_kernel<T, kN, Major::kMN, true>)
                                            : (k_major ? wgmma_kernel<T, kN, Major::kK, false>
                                                       : wgmma_kernel<T, kN, Major::kMN, false>);
    launch(kernel, dim3(1), dim3(128), kLines * sizeof(Line<T>), stream, static_cast<const T*>(p.a),
           static_cast<const T*>(p.b), static_cast<float*>(p.out));
  };
  if (dtype == DType::kFloat16) {
    return with_int<24>(n, [&](auto n) { launch_for(n, Type<__half>{}); });
  }
  with_int<8, 24, 104, 208, 256>(n, [&](auto n) { launch_for(n, Type<__nv_bfloat16>{}); });
}

void launch_turns(const Conformance& p, int rounds, cudaStream_t stream) {
  launch(turns_kernel, dim3(1), dim3(256), sizeof(uint32_t), stream, rounds,
         static_cast<uint32_t*>(p.out));
}

}  // namespace shiftmlp
