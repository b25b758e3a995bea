// The adjoint of the norm and sums over rows: memory decides here too. A block owns a part of the
// rows and goes through it group by group: first a warp sums along each row of a group, then a
// thread goes down each column, so that sums over rows stay in registers. The second time, a group
// comes out of the cache.
#include "columns.h"

namespace shiftmlp {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kGroup = 16;                 // rows
constexpr int kStrip = kThreads * kItems;  // columns that a block can own

struct Params {
  Matrix dy, x;
  int64_t rows;
  int32_t columns, strips;
  NormParams norm;
  Vector scale;
  void* dx;
  DType dtype;
  float *dweight, *dbias, *dscale;
  int32_t parts;
};

struct Shared {
  float means[2][kGroup][2];  // of the groups in turn
  Floats sums[kThreads], along_x[kThreads];
};

__device__ int least(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

struct Moments {
  float mean, rstd;

  __device__ Moments(const NormParams& norm, int64_t row)
      : mean(norm.mean ? norm.mean[row] : 0.0f), rstd(norm.mean ? norm.rstd[row] : 1.0f) {}
  __device__ float normal(float x) const { return (x - mean) * rstd; }
};

// The means along a row of d and d * normal(x), the directions that LayerNorm removes, where d is
// the gradient of the normalized row.
template <bool kAligned>
__device__ void row_means(const Params& p, int64_t row, float (&means)[2]) {
  constexpr int kLoads = kAligned ? 2 : 1, kLanes = 32;  // more would not fit into registers
  const Moments moments(p.norm, row);
  float ones = 0.0f, along = 0.0f;
  for (int64_t begin = 0; begin < p.columns; begin += kLoads * kLanes * kItems) {
    Raw dy[kLoads], x[kLoads];
    const auto columns = [&](int i) {
      return Columns<kAligned>(begin + i * kLanes * kItems, p.columns, threadIdx.x % 32, kLanes);
    };
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      dy[i] = p.dy.load(row, columns(i)), x[i] = p.x.load(row, columns(i));
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (!columns(i).has(0)) break;
      const Floats factor =
          product(load(p.norm.weight, 1.0f, columns(i)), load(p.scale, 1.0f, columns(i)));
      const Floats d = product(widened(dy[i], p.dy.dtype), factor);
      Floats normal = widened(x[i], p.x.dtype);
#pragma unroll
      for (float& v : normal.at) v = moments.normal(v);
      ones += sum(d), along += sum(product(d, normal));
    }
  }
  ones = warp_sum(ones), along = warp_sum(along);
  if (threadIdx.x % 32 == 0) means[0] = ones / p.columns, means[1] = along / p.columns;
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) norm_backward_kernel(const __grid_constant__ Params p) {
  auto& shared = shared_memory<Shared>();
  const int64_t part = blockIdx.x / p.strips, strip = blockIdx.x % p.strips;
  const int64_t end = p.rows * (part + 1) / p.parts;
  const int width = least(p.columns - strip * kStrip, kStrip);
  const int across = (width + kItems - 1) / kItems, down = kThreads / across;
  const int tx = threadIdx.x % across, ty = threadIdx.x / across;
  const Columns<kAligned> columns(strip * kStrip, p.columns, tx, across);
  const bool projects = p.norm.mean && p.dx;
  const Floats factor = product(load(p.norm.weight, 1.0f, columns), load(p.scale, 1.0f, columns));

  Floats sums = all(0.0f), along_x = all(0.0f);  // of dy and of dy * normal(x)
  int turn = 0;
  for (int64_t first = p.rows * part / p.parts; first < end; first += kGroup, turn ^= 1) {
    const int count = least(end - first, kGroup);
    auto& means = shared.means[turn];
    if (projects) {
#pragma unroll 1
      for (int i = threadIdx.x / 32; i < count; i += kWarps) {
        row_means<kAligned>(p, first + i, means[i]);
      }
      block_barrier();  // the other turn's means are free then, too: all have come past them
    }
#pragma unroll 1
    for (int i = ty; i < count && ty < down; i += down) {
      const int64_t row = first + i;
      const Raw raw_dy = p.dy.load(row, columns), raw_x = p.x.load(row, columns);
      const Moments moments(p.norm, row);
      const float one = projects ? means[i][0] : 0.0f, along = projects ? means[i][1] : 0.0f;
      const Floats dy = widened(raw_dy, p.dy.dtype), x = widened(raw_x, p.x.dtype);
      Floats dx;
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const float normal = moments.normal(x.at[j]);
        dx.at[j] = (dy.at[j] * factor.at[j] - one - normal * along) * moments.rstd;
        sums.at[j] += dy.at[j];
        along_x.at[j] += dy.at[j] * normal;
      }
      if (p.dx) store(dx, p.dx, p.dtype, row * p.columns, columns);
    }
  }

  shared.sums[threadIdx.x] = sums, shared.along_x[threadIdx.x] = along_x;
  block_barrier();
  if (ty > 0) return;
#pragma unroll 1
  for (int i = 1; i < down; ++i) {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      sums.at[j] += shared.sums[i * across + tx].at[j];
      along_x.at[j] += shared.along_x[i * across + tx].at[j];
    }
  }
  // Read once more: kept through the rows, they would take registers that the rows need.
  const Floats weight = load(p.norm.weight, 1.0f, columns), bias = load(p.norm.bias, 0.0f, columns);
  const Floats scale = load(p.scale, 1.0f, columns);
  const auto put = [&](float* to, const auto& of) {
    if (to == nullptr) return;
    Floats v;
#pragma unroll
    for (int j = 0; j < kItems; ++j) v.at[j] = of(j);
    store(v, to, DType::kFloat32, part * p.columns, columns);
  };
  put(p.dweight, [&](int j) { return scale.at[j] * along_x.at[j]; });
  put(p.dbias, [&](int j) { return scale.at[j] * sums.at[j]; });
  put(p.dscale, [&](int j) { return weight.at[j] * along_x.at[j] + bias.at[j] * sums.at[j]; });
}

// A lane owns a number, and every warp some of its parts.
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* parts, int32_t count, int64_t n, void* sums, DType dtype) {
  auto& shared = shared_memory<float[kWarps][32]>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t at = int64_t{blockIdx.x} * 32 + lane;
  float total = 0.0f;
#pragma unroll 4
  for (int part = warp; part < count; part += kWarps) {
    if (at < n) total += parts[part * n + at];
  }
  shared[warp][lane] = total;
  block_barrier();
  if (warp > 0 || at >= n) return;
  for (int i = 1; i < kWarps; ++i) total += shared[i][lane];
  if (dtype == DType::kFloat16) {
    static_cast<__half*>(sums)[at] = __half(total);
  } else if (dtype == DType::kBFloat16) {
    static_cast<__nv_bfloat16*>(sums)[at] = __nv_bfloat16(total);
  } else {
    static_cast<float*>(sums)[at] = total;
  }
}

}  // namespace

void launch_norm_backward(const NormBackward& p, cudaStream_t stream) {
  if (p.dy.columns == 0) return;
  const int32_t strips = (p.dy.columns - 1) / kStrip + 1;
  const Params params{Matrix(p.dy), Matrix(p.x), p.dy.images * p.dy.count,
                      p.dy.columns, strips,      p.norm,
                      p.scale,      p.dx,        p.dtype,
                      p.dweight,    p.dbias,     p.dscale,
                      p.parts};
  Alignment alignment(p.dy.columns);
  alignment.with(p.dy).with(p.x).with(p.norm.weight).with(p.norm.bias).with(p.scale).with(p.dx);
  alignment.with(p.dweight).with(p.dbias).with(p.dscale);
  const auto kernel = alignment.holds() ? norm_backward_kernel<true> : norm_backward_kernel<false>;
  launch(kernel, dim3(p.parts * strips), dim3(kThreads), sizeof(Shared), stream, params);
}

void launch_sum_rows(const Images& a, const Images& b, float* sums, int32_t parts,
                     cudaStream_t stream) {
  NormBackward p{};
  p.dy = a, p.x = b, p.parts = parts;
  (b.rows.data ? p.dweight : p.dbias) = sums;
  launch_norm_backward(p, stream);
}

void launch_sum_parts(const float* parts, int32_t count, int64_t n, void* sums, DType dtype,
                      cudaStream_t stream) {
  if (n == 0) return;
  launch(sum_parts_kernel, dim3(static_cast<uint32_t>((n + 31) / 32)), dim3(kThreads),
         sizeof(float[kWarps][32]), stream, parts, count, n, sums, dtype);
}

}  // namespace shiftmlp
