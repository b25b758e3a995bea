// The way of a warpgroup's sums into the result of a product on sm_90a.
#pragma once

#include "activation.h"
#include "product_sm90.h"
#include "tile.h"
#include "tiles_sm90.h"

namespace shiftmlp {

constexpr int kAtOnce = 64;  // columns that are stored at a time

struct OfColumn {
  float bias, scale;
};

struct alignas(8) Pair {
  float first, second;
};

// Where TMA stores it.
struct ResultMaps {
  TensorMap y, inner;
};

// The result of a launch.
struct ResultSm90 {
  Result y;
  Side to;  // rows of y, and where a shift moves them
  NormAdjoint norm;
  int32_t M, N;
};

// What a warpgroup computes of it: 64 rows from `row` on.
struct Place {
  int32_t image, row, column;
};

// Two neighbouring columns of both of a lane's rows, in every eight of kAtOnce columns.
using Words = uint32_t[kAtOnce / 8][2];

template <class T>
__device__ void load_words(Words& to, const Rows& from, const ResultSm90& p, int32_t image,
                           int32_t row, int32_t column) {
  const T* const data = static_cast<const T*>(from.data) + image * from.stride_b;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t r = row + 8 * half, count = r < p.N ? p.M - column : 0;
    const T* const first = data + r * from.stride + column;
#pragma unroll
    for (int n = 0; n < kAtOnce / 8; ++n) {
      const bool inside = 8 * n < count;
      to[n][half] = inside ? *reinterpret_cast<const uint32_t*>(first + 8 * n) : uint32_t{0};
    }
  }
}

// Stores a piece of row r where the shift takes it, and what enters where nothing is taken to.
template <class T>
__device__ void store_moved(const Side& to, int32_t r, int32_t c, const Packed<T>& piece) {
  const Shift& shift = to.shift;
  const int32_t H = to.operand.H, W = to.operand.W;
  const int32_t line = to.W.quotient(r), number = to.H.quotient(line);
  const int32_t h = line - number * H, w = r - line * W;
  const int64_t stride = to.operand.rows.stride;
  T* const map = static_cast<T*>(const_cast<void*>(to.operand.rows.data)) +
                 int64_t{number} * H * W * stride + c;
  const bool wrap = shift.border == Border::kWrap;
  const auto at = [&](int32_t h, int32_t w) -> Packed<T>* {
    if (wrap && h >= H) h -= H;  // steps are never negative then
    if (wrap && w >= W) w -= W;
    const bool inside = 0 <= h && h < H && 0 <= w && w < W;
    return inside ? reinterpret_cast<Packed<T>*>(map + (int64_t{h} * W + w) * stride) : nullptr;
  };
  const Step step = shift.steps[shift.group(c, to.columns)];
  if (Packed<T>* const place = at(h + step.dy, w + step.dx)) *place = piece;
  if (wrap || at(h - step.dy, w - step.dx)) return;
  Packed<T> entering = piece;
  if (shift.border == Border::kZero) {
    for_each_item([&](int i) { entering.items[i] = T(0.0f); });
  }
  *at(h, w) = entering;
}

// Stores 64 rows by kAtOnce columns, which are in `lines`, by all threads of the warpgroup.
template <class T>
__device__ void store_moved(Line<T>* lines, const ResultSm90& p, int32_t row, int32_t column) {
  const int thread = threadIdx.x % kWarpgroup, piece = thread % 8 * kItems;
  if (column + piece >= p.M) return;
#pragma unroll 1
  for (int line = thread / 8; line < 64 && row + line < p.N; line += kWarpgroup / 8) {
    const T* const from = swizzled(lines, line, piece);
    store_moved(p.to, row + line, column + piece, *reinterpret_cast<const Packed<T>*>(from));
  }
}

// Fills the lines with a warpgroup's words, when those before them are stored; `also` writes what
// else is read when all have come past it.
template <class T, class Also>
__device__ void fill_lines(Line<T>* lines, const Words& words, const Also& also) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  const int barrier = 2 + threadIdx.x / kWarpgroup;
  if (thread == 0) tma_store_wait_read<0>();
  named_barrier(barrier, kWarpgroup);  // the lines before these are stored
#pragma unroll
  for (int n = 0; n < kAtOnce / 8; n += 2) {
    const uint32_t four[4] = {words[n][0], words[n][1], words[n + 1][0], words[n + 1][1]};
    const int line = warp * 16 + lane / 8 % 2 * 8 + lane % 8;
    stmatrix(swizzled(lines, line, 8 * n + lane / 16 * 8), four);
  }
  also();
  async_proxy_fence();
  named_barrier(barrier, kWarpgroup);
}

template <class T>
__device__ void store_lines(Line<T>* lines, const TensorMap& map, const Place& place,
                            int32_t column) {
  if (threadIdx.x % kWarpgroup > 0) return;
  tma_store(map, {column, place.row, place.image}, lines);
  tma_store_commit();
}

// With kSlope, scale * v * activation'(slope_of); else residual + scale * activation(v), after v
// itself where that is wanted.
template <class T, bool kSlope, int kColumns>
__device__ void store_result(Line<T>* lines, const ResultMaps& maps, const ResultSm90& p,
                             const Place& place, const float (&sums)[kColumns / 2],
                             const OfColumn* columns) {
  const Result& y = p.y;
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  const int q = lane % 4 * 2;
  const int32_t row = place.row + warp * 16 + lane / 4;
  float row_bias[2] = {};
  if constexpr (!kSlope) {
    for (int half = 0; half < 2; ++half) {
      if (row + 8 * half < p.N) row_bias[half] = read(y.row_bias, row + 8 * half);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; c += kAtOnce) {
    const int32_t column = place.column + c;
    if (column >= p.M) break;
    float values[kAtOnce / 8][2][2];
    const auto for_each_pair = [&](const auto& f) {
#pragma unroll
      for (int n = 0; n < kAtOnce / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) f(n, half, values[n][half]);
      }
    };
    const auto sum = [&](int n, int half, int j) {
      const float bias = row_bias[half] + columns[c + 8 * n + q + j].bias;
      return sums[(c / 8 + n) * 4 + 2 * half + j] + bias;
    };
    const auto store = [&](const TensorMap& map, bool moves) {
      Words words;
      for_each_pair([&](int n, int half, const float (&pair)[2]) {
        words[n][half] = pack<T>(pair[0], pair[1]);
      });
      fill_lines(lines, words, [] {});
      moves ? store_moved(lines, p, place.row, column) : store_lines(lines, map, place, column);
    };
    if constexpr (!kSlope) {
      if (y.inner) {
        for_each_pair([&](int n, int half, float (&pair)[2]) {
          pair[0] = sum(n, half, 0), pair[1] = sum(n, half, 1);
        });
        store(maps.inner, false);
      }
    }
    const Rows& others = kSlope ? y.slope_of : y.residual;
    Words words = {};
    if (others.data) load_words<T>(words, others, p, place.image, row, column + q);
    with_activation(y.activation, [&](auto constant) {
      constexpr Activation kActivation = decltype(constant)::value;
      for_each_pair([&](int n, int half, float (&pair)[2]) {
        float other[2];
        unpack<T>(words[n][half], other);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float v = sum(n, half, j), scale = columns[c + 8 * n + q + j].scale;
          if constexpr (kSlope) {
            pair[j] = scale * activate_backward<kActivation>(v, other[j]);
          } else {
            pair[j] = other[j] + scale * activate<kActivation>(v);
          }
        }
      });
    });
    if (y.dtype != DType::kFloat32) {
      store(maps.y, p.to.operand.shift != nullptr);
      continue;
    }
    float* const first = static_cast<float*>(y.data) + place.image * y.stride_b + column + q;
    for_each_pair([&](int n, int half, const float (&pair)[2]) {
      const int32_t r = row + 8 * half;
      if (r >= p.N || column + 8 * n + q >= p.M) return;
      *reinterpret_cast<Pair*>(first + r * y.stride + 8 * n) = {pair[0], pair[1]};
    });
  }
}

}  // namespace shiftmlp
