// The adjoint of a norm over the columns, where a warpgroup's sums of a product on sm_90a are the
// gradient of the norm's result. With g a sum, w the norm's weight and z = (x - mean) * rstd, the
// gradient of x is rstd * (w g - mean(w g) - z * mean(z w g)), and the weight's is the sum of z g
// over the rows. The means are those of a row over all columns: of the blocks that have it, which
// are beside one another in a cluster.
#pragma once

#include "cluster.h"
#include "result_sm90.h"

namespace shiftmlp {

// What warps that have the same 16 rows, one in each block, tell one another.
struct SharedRows {
  Floats2 sums[2][16];  // in turns: while the others read one, the next is written
  Mbarrier told;
};

// Of a warpgroup.
struct alignas(8) SharedNorm {
  SharedRows rows[kWarpgroup / 32];
  float columns[kWarpgroup / 32][2][kAtOnce];  // every warp's sums of g and z g over its rows

  __device__ void init(int across) {
    for (SharedRows& of_warp : rows) mbarrier_init(of_warp.told, across);
  }
};

// A lane's sums, for rows g and g + 8, become those over `count` blocks, of which the first one has
// that rank.
__device__ inline void add_over_blocks(SharedRows& shared, Floats2 (&sums)[2], int first, int count,
                                       int turn) {
  const int lane = threadIdx.x % 32;
  Floats2* const mine = &shared.sums[turn][lane / 4];
  if (lane % 4 == 0) mine[0] = sums[0], mine[8] = sums[1];
  warp_barrier();
  if (lane < count) mbarrier_release_in(first + lane, shared.told);
  mbarrier_wait_in_cluster(shared.told, turn);
  sums[0] = sums[1] = {};
  for (int block = first; block < first + count; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Floats2 other = read_in(block, mine[8 * half]);
      sums[half].first += other.first, sums[half].second += other.second;
    }
  }
}

// Of kAtOnce columns, a lane has two in every eight, of 2 rows: the sums over a warp's rows of two
// neighbours, 2 * lane and the next. Lanes exchange halves, so that each adds up what it keeps.
__device__ inline Pair add_over_rows(float (&sums)[kAtOnce / 4]) {
#pragma unroll
  for (int mask = 16; mask >= 4; mask /= 2) {
    const bool upper = threadIdx.x & mask;
#pragma unroll
    for (int i = 0; i < kAtOnce / 8; ++i) {
      if (i >= mask / 2) break;
      const float low = sums[i], high = sums[i + mask / 2];
      sums[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, mask);
    }
  }
  return {sums[0], sums[1]};
}

// `turn` is another one each time.
template <class T, int kColumns>
__device__ void store_norm(SharedNorm& shared, Line<T>* lines, const TensorMap& map,
                           const ResultSm90& p, const Place& place, float (&sums)[kColumns / 2],
                           const OfColumn* columns, int across, int turn) {
  const NormAdjoint& norm = p.norm;
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  const int q = lane % 4 * 2;
  const int32_t row = place.row + warp * 16 + lane / 4;
  float mean[2] = {}, rstd[2] = {1.0f, 1.0f};
  for (int half = 0; norm.mean && half < 2; ++half) {
    const int32_t r = row + 8 * half;
    if (r >= p.N) break;
    const int64_t of_image = int64_t{place.image} * p.N;
    mean[half] = norm.mean[of_image + r], rstd[half] = norm.rstd[of_image + r];
  }
  constexpr int kPieces = kColumns / kAtOnce;
  const auto load = [&](Words& x, int i) {
    load_words<T>(x, norm.x, p, place.image, row, place.column + i * kAtOnce + q);
  };
  const auto weight = [&](int i, int n, int j) {
    return columns[i * kAtOnce + 8 * n + q + j].scale;
  };
  // f(n, half, g, z), both of two neighbours.
  const auto for_each_pair = [&](int i, const Words& x, const auto& f) {
#pragma unroll
    for (int n = 0; n < kAtOnce / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* const g = &sums[(i * kAtOnce / 8 + n) * 4 + 2 * half];
        float z[2];
        unpack<T>(x[n][half], z);
        for (float& v : z) v = (v - mean[half]) * rstd[half];
        f(n, half, g, z);
      }
    }
  };

  // As where the gradient of the norm's result goes through memory: results do not tell of the way.
  for (float& sum : sums) sum = float(T(sum));
  Floats2 means[2] = {};
  if (norm.mean) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      Words x;
      load(x, i);
      for_each_pair(i, x, [&](int n, int half, const float* g, const float* z) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float d = g[j] * weight(i, n, j);
          means[half].first += d, means[half].second += d * z[j];
        }
      });
    }
    for (Floats2& mine : means) {
      for (int mask = 1; mask <= 2; mask *= 2) {
        mine.first += shuffle_xor(mine.first, mask);
        mine.second += shuffle_xor(mine.second, mask);
      }
    }
    const int first = cluster_rank() / across * across;
    add_over_blocks(shared.rows[warp], means, first, across, turn);
    for (Floats2& mine : means) mine.first /= p.M, mine.second /= p.M;
  }

#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int32_t column = place.column + i * kAtOnce;
    if (column >= p.M) break;
    Words x;
    load(x, i);
    float of_bias[kAtOnce / 4] = {}, of_weight[kAtOnce / 4] = {};
    for_each_pair(i, x, [&](int n, int half, const float* g, const float* z) {
      float dx[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        of_bias[2 * n + j] += g[j], of_weight[2 * n + j] += g[j] * z[j];
        const float d = g[j] * weight(i, n, j);
        dx[j] = (d - means[half].first - z[j] * means[half].second) * rstd[half];
      }
      x[n][half] = pack<T>(dx[0], dx[1]);
    });
    const Pair two[2] = {add_over_rows(of_bias), add_over_rows(of_weight)};
    fill_lines(lines, x, [&] {
      for (int of = 0; of < 2; ++of) {
        reinterpret_cast<Pair*>(shared.columns[warp][of])[lane] = two[of];
      }
    });
    store_lines(lines, map, place, column);
    const int of = thread / kAtOnce, here = thread % kAtOnce;
    float* const to = of ? norm.dweight : norm.dbias;
    if (!to || column + here >= p.M || place.row >= p.N) continue;
    float total = 0.0f;
    for (auto& of_warp : shared.columns) total += of_warp[of][here];
    const int32_t parts = (p.N + kNormRows - 1) / kNormRows;
    const int64_t part = int64_t{place.image} * parts + place.row / kNormRows;
    to[part * p.M + column + here] = total;
  }
}

}  // namespace shiftmlp
