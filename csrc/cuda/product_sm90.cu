// A layer over the channels is 2 M N K operations on 2 (M K + N K + M N) bytes: for 256 images of
// 196 tokens, 768 to 3072 channels, 237 GFLOP and 390 MB, 239 us of an H200's tensor cores (990
// TFLOP/s) and 81 us of its memory (4.8 TB/s).
//
// A block computes 128 rows by up to 256 columns of the result at a time, so that it reads a byte
// from L2 for every 85 operations. A warp loads chunks of both operands by TMA; of rows that a
// shift moves, four warps gather them. Each of two warpgroups multiplies 64 rows. The second starts
// late, and stays as many chunks behind as there are places for, so that one multiplies while the
// other one activates. Two blocks whose parts are one below another load half of the columns each
// for both: a byte from L2 for every 128 operations.
#include "chunks_sm90.h"
#include "product_sm90.h"

namespace shiftmlp {
namespace {

// By both warpgroups.
template <class T, class Layout, bool kSlope, int kColumns>
__device__ void multiply(Shared<T, kColumns>& shared, const ResultMaps& results, const Params& p,
                         const Parts& parts, bool gathers) {
  constexpr Major kRowsMajor = Layout::kRowsSumRows ? Major::kMN : Major::kK;
  constexpr Major kColumnsMajor = Layout::kColumnsSumRows ? Major::kMN : Major::kK;
  constexpr int kNextColumns = Layout::kColumnsSumRows ? kTerms * sizeof(Line<T>) : 16;
  constexpr int kPlaces = Shared<T, kColumns>::kPlaces;
  const int group = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
  Turn<kPlaces> turn;
  const auto hand_back = [&](int place) {
    const int lane = threadIdx.x % 32;
    if (lane < p.cluster) mbarrier_arrive_in(lane, shared.empty[place]);
  };
  const int32_t first = parts.first(), first_chunks = parts[first].chunks;
  // All that is announced while the second warpgroup hands nothing back.
  const int32_t announced = kPlaces - (gathers ? kGathersAhead : 0);
  const int32_t head_start = (first_chunks < announced ? first_chunks : announced) - 1;
  if (group == 1) named_barrier(1, kConsumers);
  for (int32_t i = first; i < parts.count(); i += parts.step()) {
    Parts::Part part = parts[i];
    part.row += 64 * group;
    OfColumn* const columns = shared.columns[group];
    for (int c = thread; c < kColumns; c += kWarpgroup) {
      const int32_t column = part.column + c;
      if (column >= p.result.M) break;
      columns[c] = {read(p.result.y.column_bias, column), read(p.result.y.scale, column, 1.0f)};
    }
    float sums[kColumns / 2];
    for (int32_t chunk = 0; chunk < part.chunks; ++chunk) {
      auto& [rows, terms] = shared.chunks[turn.place];
      mbarrier_wait(shared.full[turn.place], turn.phase);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kTerms; k += 16) {
        const T* const a = Layout::kRowsSumRows ? rows[64 * group + k] : &rows[64 * group][k];
        const T* const b = Layout::kColumnsSumRows ? terms[k] : &terms[0][k];
        wgmma<T, kColumns, kRowsMajor, kColumnsMajor>(
            sums, wgmma_operand(a), wgmma_operand(b, 1024, kNextColumns), chunk + k > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (chunk > 0) hand_back(turn.place > 0 ? turn.place - 1 : kPlaces - 1);
      if (i == first && group == 0 && chunk == head_start) {
        named_barrier_arrive(1, kConsumers);
      }
      turn.next();
    }
    wgmma_wait<0>(sums);
    hand_back(turn.place > 0 ? turn.place - 1 : kPlaces - 1);
    named_barrier(2 + group, kWarpgroup);  // the columns are there
    store_result<T, kSlope, kColumns>(shared.y[group], results, p.result, part, sums, columns);
    named_barrier(2 + group, kWarpgroup);  // and free
  }
  if (thread == 0) tma_store_wait_read<0>();
}

// A result is activated, or, with kSlope, multiplied by a slope.
template <class T, class Layout, bool kSlope, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    product_sm90_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  auto& shared = shared_memory<Shared<T, kColumns>>();
  constexpr bool kMayGather = !Layout::kColumnsSumRows;
  const bool gathers = kMayGather && p.rows.operand.shift != nullptr;
  if (threadIdx.x == 0) {
    shared.init(gathers, p.cluster);
    mbarrier_init_fence();
  }
  cluster_barrier();
  const Parts parts(p, kColumns);
  if (threadIdx.x < kConsumers) {
    take_registers<kMayGather ? 216 : 232>();
    multiply<T, Layout, kSlope, kColumns>(shared, maps.results, p, parts, gathers);
  } else {
    give_registers<kMayGather ? 72 : 40>();
    if (gathers || threadIdx.x == kConsumers) {
      load<T, Layout, kColumns>(shared, maps, p, parts, gathers);
    }
  }
  cluster_barrier();  // the other block hands places back to this one until it has read them all
}

// Images of `count` rows, in boxes of 64 of their columns by so many rows.
template <class T>
TensorMap map_of(const void* data, int64_t stride_b, int64_t stride, int64_t images, int32_t count,
                 int32_t columns, int rows) {
  const bool one = stride_b == 0;
  return tensor_map<T, 3>(static_cast<const T*>(data), {columns, count, one ? 1 : images},
                          {stride, one ? stride : stride_b}, {64, rows, 1}, Swizzle::kSwizzle128);
}

// An operand in boxes of 64 terms by `lines` of its rows or columns, or of 64 of them by 64 terms;
// each of so many blocks loads an equal share of such a box.
template <class T>
TensorMap map_of(const Operand& o, int64_t images, int32_t size, int32_t K, int lines, int blocks) {
  static_assert(kTerms == 64);
  const auto& [data, stride_b, stride] = o.rows;
  if (o.sums_rows) return map_of<T>(data, stride_b, stride, images, K, size, kTerms / blocks);
  return map_of<T>(data, stride_b, stride, images, size, K, lines / blocks);
}

// How many parts the busiest block computes.
int64_t most_parts(const Params& p, int columns) {
  const int clusters = multiprocessors() / p.cluster;
  return (Parts(p, columns).count() + clusters - 1) / clusters;
}

template <class T, class Layout, bool kSlope, int kColumns>
void launch_for(const Product& product, Params p, cudaStream_t stream) {
  static_assert(sizeof(Shared<T, kColumns>) <= kSharedLimit);
  Params pairs = p;
  pairs.cluster = 2;
  if (p.result.N > kRows && most_parts(pairs, kColumns) <= most_parts(p, kColumns)) p = pairs;
  Maps maps{};
  maps.columns =
      map_of<T>(product.columns, product.images, product.M, product.K, kColumns, p.cluster);
  if (!product.rows.shift) {
    maps.rows = map_of<T>(product.rows, product.images, product.N, product.K, kRows, 1);
  }
  const Result& y = product.result;
  const auto map_of_result = [&](const void* data) {
    return map_of<T>(data, y.stride_b, y.stride, product.images, product.N, product.M, kRows / 2);
  };
  if (y.dtype == product.dtype) maps.results.y = map_of_result(y.data);
  if (y.inner) maps.results.inner = map_of_result(y.inner);
  const int64_t clusters =
      std::min<int64_t>(Parts(p, kColumns).count(), multiprocessors() / p.cluster);
  launch_clusters(product_sm90_kernel<T, Layout, kSlope, kColumns>, p.cluster,
                  dim3(clusters * p.cluster), dim3(kThreads), sizeof(Shared<T, kColumns>), stream,
                  maps, p);
}

// The time of the busiest block, for parts of so many columns.
int64_t cost(const Params& p, int columns) {
  constexpr int kFixed = 32;  // of a part, in columns
  return most_parts(p, columns) * (columns + kFixed);
}

template <class T, class Layout, bool kSlope>
void launch_layout(const Product& product, const Params& p, cudaStream_t stream) {
  const int64_t wide = cost(p, 256), middle = cost(p, 192), narrow = cost(p, 128);
  const auto launch = [&](auto columns) {
    launch_for<T, Layout, kSlope, decltype(columns)::value>(product, p, stream);
  };
  if (wide <= std::min(middle, narrow)) return launch(std::integral_constant<int, 256>{});
  if (middle <= narrow) return launch(std::integral_constant<int, 192>{});
  launch(std::integral_constant<int, 128>{});
}

bool is_plain(const Operand& o) {
  return !o.mean && !o.weight.data && !o.bias.data && !o.factor.data;
}

// Of a last piece of 16 bytes, TMA loads what belongs to the row.
bool fits_tma_of(const Rows& rows, int64_t columns) {
  const int64_t whole = (columns + 7) / 8 * 8;
  const bool one = rows.stride_b == 0;
  return one ? fits_tma(rows.data, rows.stride, whole) : fits_tma(rows, whole);
}

bool fits_tma_of(const Operand& o, int32_t size, int32_t K) {
  return fits_tma_of(o.rows, o.sums_rows ? size : K);
}

// Whether the kernel with kSlope is meant.
bool has_slope(const Product& p) { return p.result.slope_of.data || p.rows.sums_rows; }

bool fits_result(const Product& p) {
  const Result& y = p.result;
  if (y.factor.data) return false;
  if (has_slope(p)) {
    const bool activates = y.activation != Activation::kNone;
    if (!p.columns.sums_rows || y.residual.data || y.row_bias.data || y.inner) return false;
    if (activates && !y.slope_of.data) return false;
  }
  if (y.inner && (y.residual.data || y.scale.data || y.dtype != p.dtype)) return false;
  const auto fits = [&p](const Rows& rows) {
    return !rows.data || (p.M % 8 == 0 && fits_tma_of(rows, p.M));
  };
  if (!fits(y.residual) || !fits(y.slope_of)) return false;
  if (y.dtype == DType::kFloat32) {  // stored by twos
    return reinterpret_cast<uintptr_t>(y.data) % 8 == 0 && (p.M | y.stride | y.stride_b) % 2 == 0;
  }
  const Rows inner{y.inner, y.stride_b, y.stride};
  return y.dtype == p.dtype && p.M % 8 == 0 && fits(inner) &&
         fits_tma_of({y.data, y.stride_b, y.stride}, p.M);
}

Params params_of(const Product& p, const MoveOnWrite& move) {
  Operand to{{p.result.data, 0, p.result.stride}, false};
  to.shift = move.shift, to.H = move.H, to.W = move.W;
  const ResultSm90 result{p.result, side_of(to, p.N, p.M, 2), p.M, p.N};
  return {side_of(p.rows, p.N, p.K, 2),
          result,
          static_cast<int32_t>(p.images),
          p.K,
          p.splits,
          p.columns.rows.stride_b == 0,
          p.rows.rows.stride_b == 0,
          1};
}

}  // namespace

bool fits_sm90(const Product& p, const MoveOnWrite& move) {
  if (!is_hopper() || (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16)) return false;
  constexpr int kMost = 1 << 30;  // what is added to a size before it is divided must fit too
  if (std::min<int64_t>({p.M, p.N, p.K, p.images}) < 1) return false;
  if (std::max<int64_t>({p.M, p.N, p.K, p.images}) > kMost) return false;
  if (!is_plain(p.columns) || p.columns.shift || !is_plain(p.rows)) return false;
  if (!fits_tma_of(p.columns, p.M, p.K)) return false;
  if (p.rows.shift ? p.columns.sums_rows : !fits_tma_of(p.rows, p.N, p.K)) return false;
  if (p.rows.sums_rows && !p.columns.sums_rows) return false;
  if (!fits_result(p)) return false;
  const Params params = params_of(p, move);
  const bool moves = params.result.to.bytes == 16 && p.result.dtype == p.dtype && p.images == 1;
  if (move.shift && !moves) return false;
  const Parts parts(params, 128);
  return parts.images <= parts.chunks && std::max(parts.chunks, parts.count()) <= kMost;
}

void launch_product_sm90(const Product& p, const MoveOnWrite& move, cudaStream_t stream) {
  const Params params = params_of(p, move);
  const auto launch = [&](auto type) {
    using T = typename decltype(type)::type;
    if (!p.columns.sums_rows)
      return launch_layout<T, Layout<false, false>, false>(p, params, stream);
    if (p.rows.sums_rows) return launch_layout<T, Layout<true, true>, true>(p, params, stream);
    if (has_slope(p)) return launch_layout<T, Layout<true, false>, true>(p, params, stream);
    launch_layout<T, Layout<true, false>, false>(p, params, stream);
  };
  p.dtype == DType::kFloat16 ? launch(Type<__half>{}) : launch(Type<__nv_bfloat16>{});
}

}  // namespace shiftmlp
