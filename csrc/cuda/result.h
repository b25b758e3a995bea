// The way of a block's sums into the result.
#pragma once

#include "activation.h"
#include "items.h"
#include "product.h"

namespace shiftmlp {

constexpr int kSumsPad = 4;  // so that no two lanes store their sums to one bank

// Where a block's sums belong: from column m and row n on, of M columns and N rows.
struct Block {
  int64_t image;
  int32_t m, n, M, N;
};

// Makes the result of the sums, two times over them: what is long is compiled once, what waits for
// memory is asked for several rows at a time.
template <class T, int kThreads, int kRows, int kPitch>
__device__ void finish(const Result& y, const Block& block, float (&sums)[kRows][kPitch]) {
  constexpr int kAcross = (kPitch - kSumsPad) / kItems, kDown = kThreads / kAcross, kBatch = 4;
  const int column = threadIdx.x % kAcross * kItems, first = threadIdx.x / kAcross;
  const int32_t m = block.m + column, count = block.M - m;
  const int32_t rows = block.N - block.n < kRows ? block.N - block.n : kRows;
  const Items column_bias = read(y.column_bias, m, count, 0.0f);
#pragma unroll 1
  for (int row = first; row < rows; row += kDown) {
    const int32_t n = block.n + row;
    Items v = read(&sums[row][column], kItems);
    const float row_bias = read(y.row_bias, n);
    for_each_item([&](int i) { v.at[i] += row_bias + column_bias.at[i]; });
    if (y.slope_of.data) {
      const Items at = read<T>(y.slope_of, block.image, n, m, count);
      with_activation(y.activation, [&](auto activation) {
        constexpr Activation kActivation = decltype(activation)::value;
        for_each_item([&](int i) { v.at[i] = activate_backward<kActivation>(v.at[i], at.at[i]); });
      });
    } else {
      if (y.inner) {
        write(static_cast<T*>(y.inner) + block.image * y.stride_b + n * y.stride + m, v, count);
      }
      with_activation(y.activation, [&](auto activation) {
        for_each_item([&](int i) { v.at[i] = activate<decltype(activation)::value>(v.at[i]); });
      });
    }
    write(&sums[row][column], v, kItems);
  }
  const Items scale = read(y.scale, m, count, 1.0f);
#pragma unroll 1
  for (int above = first; above < rows; above += kBatch * kDown) {
    Packed<T> factors[kBatch], residuals[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = above + i * kDown;
      const int inside = row < rows ? count : 0;
      if (y.factor.data) factors[i] = pack<T>(y.factor, block.image, block.n + row, m, inside);
      if (y.residual.data)
        residuals[i] = pack<T>(y.residual, block.image, block.n + row, m, inside);
    }
#pragma unroll
    for (int batch = 0; batch < kBatch; ++batch) {
      const int row = above + batch * kDown;
      if (row >= rows) continue;
      Items v = read(&sums[row][column], kItems);
      const Items factor = unpack(factors[batch]), residual = unpack(residuals[batch]);
      for_each_item([&](int i) {
        v.at[i] *= scale.at[i];
        if (y.factor.data) v.at[i] *= factor.at[i];
        if (y.residual.data) v.at[i] += residual.at[i];
      });
      const int64_t at = block.image * y.stride_b + (block.n + row) * y.stride + m;
      if (y.dtype == DType::kFloat32) {
        write(static_cast<float*>(y.data) + at, v, count);
      } else {
        write(static_cast<T*>(y.data) + at, v, count);
      }
    }
  }
}

}  // namespace shiftmlp
