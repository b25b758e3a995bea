// The adjoint of the norm and sums over rows: memory decides here too. A block owns a part of the
// rows and goes through it group by group: first a warp sums along each row of a group, then a
// thread goes down each column, so that sums over rows stay in registers. The second time, a group
// comes out of the cache.
#include "columns.h"

namespace shiftmlp {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = 2;                 // of a multiprocessor
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

// Of a row: the moments that it is normalized by, and the means along it of d and d * normal(x),
// the directions that LayerNorm removes, where d is the gradient of the normalized row.
struct alignas(16) RowTerms {
  float mean, rstd, ones, along;

  __device__ float normal(float x) const { return (x - mean) * rstd; }
};

struct Shared {
  RowTerms rows[2][kGroup];  // of the groups in turn
  Items sums[kThreads], along_x[kThreads];
};

__device__ int least(uint32_t a, int b) { return a < static_cast<uint32_t>(b) ? a : b; }

// What dy is multiplied by on its way to the normalized row.
template <bool kWide>
__device__ Items factor_of(const Params& p, const Columns<kWide>& columns) {
  return scaled(load(p.norm.weight, 1.0f, columns), p.scale, columns);
}

template <class T>
__device__ RowTerms terms_of(const Params& p, uint32_t row) {
  using Strip = Strip<T, 2>;  // more would not fit into registers
  RowTerms terms{p.norm.mean[row], p.norm.rstd[row], 0.0f, 0.0f};
  const int64_t of_dy = p.dy.offset(row), of_x = p.x.offset(row);
#pragma unroll 1
  for (int64_t begin = 0; begin < p.columns; begin += Strip::kColumns) {
    const Strip dy(p.dy, of_dy, begin, p.columns), x(p.x, of_x, begin, p.columns);
#pragma unroll
    for (int i = 0; i < Strip::kLoads; ++i) {
      const auto columns = Strip::columns(begin, p.columns, i);
      if (!columns.has(0)) break;
      const Items d = product(dy.items[i], factor_of(p, columns));
      Items normal = x.items[i];
      for_each_item([&](int j) { normal.at[j] = terms.normal(normal.at[j]); });
      terms.ones += sum(d), terms.along += sum(product(d, normal));
    }
  }
  terms.ones = warp_sum(terms.ones) / p.columns, terms.along = warp_sum(terms.along) / p.columns;
  return terms;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_backward_kernel(const __grid_constant__ Params p) {
  constexpr int kRows = kIsWide<T> ? 32 / sizeof(Loaded<T>) : 1;  // whose loads are under way
  auto& shared = shared_memory<Shared>();
  const int64_t part = blockIdx.x / p.strips, strip = blockIdx.x % p.strips;
  const uint32_t end = p.rows * (part + 1) / p.parts;
  const int width = least(p.columns - strip * kStrip, kStrip);
  const int across = (width + kItems - 1) / kItems, down = kThreads / across;
  const int tx = threadIdx.x % across, ty = threadIdx.x / across;
  const Columns<kIsWide<T>> columns(strip * kStrip, p.columns, tx, across);
  auto columns_of_x = columns;
  if (p.x.data == nullptr) columns_of_x.left = 0;
  const Items factor = factor_of(p, columns);

  Items sums = all(0.0f), along_x = all(0.0f);  // of dy and of dy * normal(x)
  int turn = 0;
  for (uint32_t first = p.rows * part / p.parts; first < end; first += kGroup, turn ^= 1) {
    const int count = least(end - first, kGroup);
    auto& rows = shared.rows[turn];
    if (p.norm.mean) {
#pragma unroll 1
      for (int i = threadIdx.x / 32; i < count; i += kWarps) {
        const RowTerms terms = terms_of<T>(p, first + i);
        if (threadIdx.x % 32 == 0) rows[i] = terms;
      }
      block_barrier();  // the other turn's rows are free then, too: all have come past them
    }
#pragma unroll 1
    for (int begin = ty; begin < count && ty < down; begin += kRows * down) {
      Loaded<T> loaded_dy[kRows], loaded_x[kRows];
#pragma unroll
      for (int r = 0; r < kRows && begin + r * down < count; ++r) {
        const uint32_t row = first + begin + r * down;
        loaded_dy[r] = p.dy.load<T>(p.dy.offset(row), columns);
        loaded_x[r] = p.x.load<T>(p.x.offset(row), columns_of_x);
      }
#pragma unroll
      for (int r = 0; r < kRows && begin + r * down < count; ++r) {
        const uint32_t row = first + begin + r * down;
        const Items dy = unpack(loaded_dy[r]);
        for_each_item([&](int j) { sums.at[j] += dy.at[j]; });
        if (p.x.data == nullptr) continue;
        const RowTerms terms =
            p.norm.mean ? rows[begin + r * down] : RowTerms{0.0f, 1.0f, 0.0f, 0.0f};
        const Items x = unpack(loaded_x[r]);
        Items dx;
        for_each_item([&](int j) {
          const float normal = terms.normal(x.at[j]);
          dx.at[j] = (dy.at[j] * factor.at[j] - terms.ones - normal * terms.along) * terms.rstd;
          along_x.at[j] += dy.at[j] * normal;
        });
        if (p.dx) store<T>(dx, p.dx, p.dtype, int64_t{row} * p.columns, columns);
      }
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
  const Items weight = load(p.norm.weight, 1.0f, columns), bias = load(p.norm.bias, 0.0f, columns);
  const Items scale = load(p.scale, 1.0f, columns);
  const auto put = [&](float* to, const auto& of) {
    if (to == nullptr) return;
    Items v;
#pragma unroll
    for (int j = 0; j < kItems; ++j) v.at[j] = of(j);
    store(v, to + part * p.columns, columns);
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
#pragma unroll 8
  for (int part = warp; part < count; part += kWarps) {
    if (at < n) total += parts[part * n + at];
  }
  shared[warp][lane] = total;
  block_barrier();
  if (warp > 0 || at >= n) return;
  for (int i = 1; i < kWarps; ++i) total += shared[i][lane];
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    static_cast<T*>(sums)[at] = T(total);
  });
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
  Access access(p.dy.columns);
  access.with(p.dy).with(p.x).with(p.norm.weight).with(p.norm.bias).with(p.scale);
  access.with(p.dx, p.dtype).with(p.dweight).with(p.dbias).with(p.dscale);
  const auto kernel =
      access.choose(norm_backward_kernel<void>, norm_backward_kernel<__half>,
                    norm_backward_kernel<__nv_bfloat16>, norm_backward_kernel<float>);
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
