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

// Columns of a row as its warp holds them, kLoads accesses of every lane.
template <bool kAligned, int kCount>
struct RowStrip {
  static constexpr int kLoads = kCount;
  static constexpr int kColumns = kLoads * 32 * kItems;
  Raw raw[kLoads];

  __device__ static Columns<kAligned> columns(int64_t begin, int32_t end, int load) {
    return {begin + load * 32 * kItems, end, static_cast<int>(threadIdx.x % 32), 32};
  }
  __device__ RowStrip(const Matrix& x, int64_t row, int64_t begin, int32_t end) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) raw[i] = x.load(row, columns(begin, end, i));
  }
};

// With `makes`, after the moments that it is by.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_kernel(const __grid_constant__ Matrix x, int64_t rows, int32_t columns, bool makes,
                float eps, const __grid_constant__ NormParams norm, Vector scale,
                const __grid_constant__ Matrix residual, void* y, DType dtype) {
  using Strip = RowStrip<kAligned, 4>;
  for_each_row(rows, [&](int64_t row) {
    Strip strip(x, row, 0, columns);
    int64_t held = 0;  // where it begins
    // Calls f(columns, items) for each access of the row, which is read again if it is long.
    const auto for_each_load = [&](const auto& f) {
      for (int64_t begin = 0; begin < columns; begin += Strip::kColumns) {
        if (begin != held) strip = Strip(x, row, held = begin, columns);
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
          const Columns<kAligned> at = strip.columns(begin, columns, i);
          if (!at.has(0)) break;
          f(at, widened(strip.raw[i], x.dtype));
        }
      }
    };
    float center = 0.0f, deviation = 1.0f;
    if (makes) {
      float total = 0.0f, squares = 0.0f;
      for_each_load([&](const auto&, const Floats& v) { total += sum(v); });
      center = warp_sum(total) / columns;
      for_each_load([&](const Columns<kAligned>& at, Floats v) {
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
    for_each_load([&](const Columns<kAligned>& at, Floats v) {
      const Floats weight = load(norm.weight, 1.0f, at), bias = load(norm.bias, 0.0f, at);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        v.at[j] = (v.at[j] - center) * deviation * weight.at[j] + bias.at[j];
      }
      if (scale.data || residual.data) {
        const Floats factor = load(scale, 1.0f, at);
        const Floats added = widened(residual.load(row, at), residual.dtype);
#pragma unroll
        for (int j = 0; j < kItems; ++j) v.at[j] = v.at[j] * factor.at[j] + added.at[j];
      }
      store(v, y, dtype, row * columns, at);
    });
  });
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks)
    activation_backward_kernel(const __grid_constant__ Matrix dy, int64_t rows, int32_t columns,
                               Vector scale, const __grid_constant__ Matrix x,
                               Activation activation, void* dx, DType dtype) {
  using Strip = RowStrip<kAligned, 2>;
  for_each_row(rows, [&](int64_t row) {
    for (int64_t begin = 0; begin < columns; begin += Strip::kColumns) {
      const Strip gradient(dy, row, begin, columns), inner(x, row, begin, columns);
#pragma unroll
      for (int i = 0; i < Strip::kLoads; ++i) {
        const Columns<kAligned> at = gradient.columns(begin, columns, i);
        if (!at.has(0)) break;
        const Floats value = widened(inner.raw[i], x.dtype);
        Floats v = product(widened(gradient.raw[i], dy.dtype), load(scale, 1.0f, at));
        with_activation(activation, [&](auto constant) {
#pragma unroll
          for (int j = 0; j < kItems; ++j) {
            v.at[j] = activate_backward<decltype(constant)::value>(v.at[j], value.at[j]);
          }
        });
        store(v, dx, dtype, row * columns, at);
      }
    }
  });
}

// A warp owns a row of a part, and goes through the images of the part.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_columns_kernel(const __grid_constant__ Matrix a, Vector scale,
                       const __grid_constant__ Matrix b, int64_t images, int32_t rows,
                       int32_t columns, float* sums, int32_t parts) {
  using Strip = RowStrip<kAligned, 2>;
  for_each_row(int64_t{parts} * rows, [&](int64_t index) {
    const int64_t part = index / rows, row = index % rows;
    const int64_t end = images * (part + 1) / parts;
    float total = 0.0f;
    for (int64_t image = images * part / parts; image < end; ++image) {
      for (int64_t begin = 0; begin < columns; begin += Strip::kColumns) {
        const Strip first(a, image * rows + row, begin, columns);
        const Strip second(b, image * rows + row, begin, columns);
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
          const Columns<kAligned> at = first.columns(begin, columns, i);
          if (!at.has(0)) break;
          const Floats factor = load(scale, 1.0f, at);
          Floats v = product(widened(first.raw[i], a.dtype), factor);
          if (b.data) v = product(v, widened(second.raw[i], b.dtype));
          total += sum(v);
        }
      }
    }
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) sums[index] = total;
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
  Alignment alignment(x.columns);
  alignment.with(x).with(norm.weight).with(norm.bias).with(scale).with(residual).with(y);
  const auto kernel = alignment.holds() ? norm_kernel<true> : norm_kernel<false>;
  launch(kernel, blocks_for(rows), dim3(kThreads), 0, stream, Matrix(x), rows, x.columns,
         eps && norm.mean, eps.value_or(0.0f), norm, scale, Matrix(residual), y, dtype);
}

void launch_activation_backward(const Images& dy, Vector scale, const Images& x,
                                Activation activation, void* dx, DType dtype, cudaStream_t stream) {
  const int64_t rows = x.images * x.count;
  if (rows == 0) return;
  const auto kernel = Alignment(x.columns).with(dy).with(scale).with(x).with(dx).holds()
                          ? activation_backward_kernel<true>
                          : activation_backward_kernel<false>;
  launch(kernel, blocks_for(rows), dim3(kThreads), 0, stream, Matrix(dy), rows, x.columns, scale,
         Matrix(x), activation, dx, dtype);
}

void launch_sum_columns(const Images& a, Vector scale, const Images& b, float* sums, int32_t parts,
                        cudaStream_t stream) {
  const int64_t rows = int64_t{parts} * a.count;
  if (rows == 0) return;
  const auto kernel = Alignment(a.columns).with(a).with(scale).with(b).holds()
                          ? sum_columns_kernel<true>
                          : sum_columns_kernel<false>;
  launch(kernel, blocks_for(rows), dim3(kThreads), 0, stream, Matrix(a), scale, Matrix(b), a.images,
         a.count, a.columns, sums, parts);
}

}  // namespace shiftmlp
