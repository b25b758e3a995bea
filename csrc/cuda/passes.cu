// Norm, the adjoint of activations and sums over columns: a few operations on every element. A warp
// owns a row and reads it with all the accesses under way that its registers have room for.
#include <algorithm>
#include <cmath>

#include "activation.h"
#include "columns.h"

namespace shiftmlp {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = 2;  // of a multiprocessor; unasked, the compiler spills to have more
constexpr int64_t kMaxBlocks = (1u << 31) - 1;  // of a launch; more rows than warps take turns

// Calls f(row) for the rows of this warp.
template <class F>
__device__ void for_each_row(int64_t rows, const F& f) {
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < rows; row += warps) {
    f(row);
  }
}

// With `makes`, after the moments that it is by.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_kernel(const __grid_constant__ Matrix x, int64_t rows, int32_t columns, bool makes,
                float eps, const __grid_constant__ NormParams norm, Vector scale,
                const __grid_constant__ Matrix residual, void* y, DType dtype) {
  using Strip = Strip<T, 4>;
  using Single = std::conditional_t<kIsWide<T>, float, void>;
  for_each_row(rows, [&](int64_t row) {
    const int64_t offset = x.offset(row);
    Strip strip(x, offset, 0, columns);
    int64_t held = 0;  // where it begins
    // Calls f(columns, items) for each access of the row, which is read again if it is long.
    const auto for_each_load = [&](const auto& f) {
#pragma unroll 1
      for (int64_t begin = 0; begin < columns; begin += Strip::kColumns) {
        if (begin != held) strip = Strip(x, offset, held = begin, columns);
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
          const auto at = Strip::columns(begin, columns, i);
          if (!at.has(0)) break;
          f(at, strip.items[i]);
        }
      }
    };
    float center = 0.0f, deviation = 1.0f;
    if (makes) {
      float total = 0.0f, squares = 0.0f;
      for_each_load([&](const auto&, const Items& v) { total += sum(v); });
      center = warp_sum(total) / columns;
      for_each_load([&](const auto& at, Items v) {
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          const float distance = at.has(j) ? v.at[j] - center : 0.0f;
          v.at[j] = distance * distance;
        }
        squares += sum(v);
      });
      deviation = 1.0f / std::sqrt(warp_sum(squares) / columns + eps);
      if (threadIdx.x % 32 == 0) norm.mean[row] = center, norm.rstd[row] = deviation;
    } else if (norm.mean) {
      center = norm.mean[row], deviation = norm.rstd[row];
    }
    if (y == nullptr) return;
    const int64_t to = row * columns, beside = residual.data ? residual.offset(row) : 0;
    for_each_load([&](const auto& at, Items v) {
      const Items weight = load(norm.weight, 1.0f, at), bias = load(norm.bias, 0.0f, at);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        v.at[j] = (v.at[j] - center) * deviation * weight.at[j] + bias.at[j];
      }
      if (scale.data || residual.data) {
        const Items factor = load(scale, 1.0f, at);
        const Items added = residual.data ? unpack(residual.load<T>(beside, at)) : all(0.0f);
#pragma unroll
        for (int j = 0; j < kItems; ++j) v.at[j] = v.at[j] * factor.at[j] + added.at[j];
      }
      dtype == DType::kFloat32 ? store<Single>(v, y, dtype, to, at) : store<T>(v, y, dtype, to, at);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    activation_backward_kernel(const __grid_constant__ Matrix dy, int64_t rows, int32_t columns,
                               Vector scale, const __grid_constant__ Matrix x,
                               Activation activation, void* dx, DType dtype) {
  using Strip = Strip<T, 2>;
  for_each_row(rows, [&](int64_t row) {
    const int64_t of_dy = dy.offset(row), of_x = x.offset(row), to = row * columns;
#pragma unroll 1
    for (int64_t begin = 0; begin < columns; begin += Strip::kColumns) {
      const Strip gradient(dy, of_dy, begin, columns), inner(x, of_x, begin, columns);
#pragma unroll
      for (int i = 0; i < Strip::kLoads; ++i) {
        const auto at = Strip::columns(begin, columns, i);
        if (!at.has(0)) break;
        const Items value = inner.items[i];
        Items v = scaled(gradient.items[i], scale, at);
        with_activation(activation, [&](auto constant) {
#pragma unroll
          for (int j = 0; j < kItems; ++j) {
            v.at[j] = activate_backward<decltype(constant)::value>(v.at[j], value.at[j]);
          }
        });
        store<T>(v, dx, dtype, to, at);
      }
    }
  });
}

// A warp owns a row of a part, and goes through the images of the part.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_columns_kernel(const __grid_constant__ Matrix a, Vector scale,
                       const __grid_constant__ Matrix b, int64_t images, int32_t rows,
                       int32_t columns, float* sums) {
  using Strip = Strip<T, 4>;
  const int64_t part = blockIdx.y, parts = gridDim.y;
  const int64_t first = images * part / parts, end = images * (part + 1) / parts;
  for_each_row(rows, [&](int64_t row) {
    float total = 0.0f;
    for (int64_t image = first; image < end; ++image) {
#pragma unroll 1
      for (int64_t begin = 0; begin < columns; begin += Strip::kColumns) {
        const Strip of_a(a, a.offset(image, row), begin, columns);
        const Strip of_b(b, b.offset(image, row), begin, b.data ? columns : begin);
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
          const auto at = Strip::columns(begin, columns, i);
          if (!at.has(0)) break;
          Items v = scaled(of_a.items[i], scale, at);
          if (b.data) v = product(v, of_b.items[i]);
          total += sum(v);
        }
      }
    }
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) sums[part * rows + row] = total;
  });
}

dim3 blocks_for(int64_t rows) {
  return dim3(static_cast<uint32_t>(std::min((rows + kWarps - 1) / kWarps, kMaxBlocks)));
}

}  // namespace

void launch_norm(const Images& x, const NormParams& norm, Vector scale, const Images& residual,
                 void* y, DType dtype, cudaStream_t stream, std::optional<float> eps) {
  const int64_t rows = x.images * x.count;
  if (rows == 0) return;
  Access access(x.columns);
  access.with(x).with(norm.weight).with(norm.bias).with(scale).with(residual);
  dtype == DType::kFloat32 ? access.with(y) : access.with(y, dtype);
  const auto kernel = access.choose(norm_kernel<void>, norm_kernel<__half>,
                                    norm_kernel<__nv_bfloat16>, norm_kernel<float>);
  launch(kernel, blocks_for(rows), dim3(kThreads), 0, stream, Matrix(x), rows, x.columns,
         eps && norm.mean, eps.value_or(0.0f), norm, scale, Matrix(residual), y, dtype);
}

void launch_activation_backward(const Images& dy, Vector scale, const Images& x,
                                Activation activation, void* dx, DType dtype, cudaStream_t stream) {
  const int64_t rows = x.images * x.count;
  if (rows == 0) return;
  const auto kernel = Access(x.columns).with(dy).with(scale).with(x).with(dx, dtype).choose(
      activation_backward_kernel<void>, activation_backward_kernel<__half>,
      activation_backward_kernel<__nv_bfloat16>, activation_backward_kernel<float>);
  launch(kernel, blocks_for(rows), dim3(kThreads), 0, stream, Matrix(dy), rows, x.columns, scale,
         Matrix(x), activation, dx, dtype);
}

void launch_sum_columns(const Images& a, Vector scale, const Images& b, float* sums, int32_t parts,
                        cudaStream_t stream) {
  if (parts == 0 || a.count == 0) return;
  const auto kernel = Access(a.columns).with(a).with(scale).with(b).choose(
      sum_columns_kernel<void>, sum_columns_kernel<__half>, sum_columns_kernel<__nv_bfloat16>,
      sum_columns_kernel<float>);
  dim3 blocks = blocks_for(a.count);
  blocks.y = parts;
  launch(kernel, blocks, dim3(kThreads), 0, stream, Matrix(a), scale, Matrix(b), a.images, a.count,
         a.columns, sums);
}

}  // namespace shiftmlp
