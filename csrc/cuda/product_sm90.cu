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
template <class T, class Layout, int kColumns>
__device__ void multiply(Shared<T, kColumns>& shared, const TensorMap& y, const Params& p,
                         const Parts& parts, bool gathers) {
  constexpr Major kRowsMajor = Layout::kRowsSumRows ? Major::kMN : Major::kK;
  constexpr Major kColumnsMajor = Layout::kColumnsSumRows ? Major::kMN : Major::kK;
  constexpr int kNextColumns = Layout::kColumnsSumRows ? kTerms * sizeof(Line<T>) : 16;
  constexpr int kPlaces = Shared<T, kColumns>::kPlaces;
  // A forward product is activated; a gradient is multiplied by a slope.
  constexpr bool kSlope = Layout::kColumnsSumRows;
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
    store_result<T, kSlope, kColumns>(shared.y[group], y, p.result, part, sums, columns);
    named_barrier(2 + group, kWarpgroup);  // and free
  }
  if (thread == 0) tma_store_wait_read<0>();
}

template <class T, class Layout, int kColumns>
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
    multiply<T, Layout, kColumns>(shared, maps.y, p, parts, gathers);
  } else {
    give_registers<kMayGather ? 72 : 40>();
    if (gathers || threadIdx.x == kConsumers) {
      load<T, Layout, kColumns>(shared, maps, p, parts, gathers);
    }
  }
  cluster_barrier();  // the other block hands places back to this one until it has read them all
}

// An operand in boxes of 64 terms by `lines` of its rows or columns, or of 64 of them by 64 terms;
// each of so many blocks loads an equal share of such a box.
template <class T>
TensorMap map_of(const Operand& o, int32_t size, int32_t K, int lines, int blocks) {
  const T* const data = static_cast<const T*>(o.rows.data);
  if (o.sums_rows) {
    return tensor_map<T, 2>(data, {size, K}, {o.rows.stride}, {64, kTerms / blocks},
                            Swizzle::kSwizzle128);
  }
  return tensor_map<T, 2>(data, {K, size}, {o.rows.stride}, {kTerms, lines / blocks},
                          Swizzle::kSwizzle128);
}

// How many parts the busiest block computes.
int64_t most_parts(const Params& p, int columns) {
  const int clusters = multiprocessors() / p.cluster;
  return (Parts(p, columns).count() + clusters - 1) / clusters;
}

template <class T, class Layout, int kColumns>
void launch_for(const Product& product, Params p, cudaStream_t stream) {
  static_assert(sizeof(Shared<T, kColumns>) <= kSharedLimit);
  Params pairs = p;
  pairs.cluster = 2;
  if (p.result.N > kRows && most_parts(pairs, kColumns) <= most_parts(p, kColumns)) p = pairs;
  Maps maps{};
  maps.columns = map_of<T>(product.columns, product.M, product.K, kColumns, p.cluster);
  if (!product.rows.shift) maps.rows = map_of<T>(product.rows, product.N, product.K, kRows, 1);
  if (product.result.dtype == product.dtype) {
    maps.y = tensor_map<T, 2>(static_cast<const T*>(product.result.data), {product.M, product.N},
                              {product.result.stride}, {kAtOnce, kRows / 2}, Swizzle::kSwizzle128);
  }
  const int64_t clusters =
      std::min<int64_t>(Parts(p, kColumns).count(), multiprocessors() / p.cluster);
  launch_clusters(product_sm90_kernel<T, Layout, kColumns>, p.cluster, dim3(clusters * p.cluster),
                  dim3(kThreads), sizeof(Shared<T, kColumns>), stream, maps, p);
}

// The time of the busiest block, for parts of so many columns.
int64_t cost(const Params& p, int columns) {
  constexpr int kFixed = 32;  // of a part, in columns
  return most_parts(p, columns) * (columns + kFixed);
}

template <class T, class Layout>
void launch_layout(const Product& product, const Params& p, cudaStream_t stream) {
  const int64_t wide = cost(p, 256), middle = cost(p, 192), narrow = cost(p, 128);
  if (wide <= std::min(middle, narrow)) return launch_for<T, Layout, 256>(product, p, stream);
  if (middle <= narrow) return launch_for<T, Layout, 192>(product, p, stream);
  launch_for<T, Layout, 128>(product, p, stream);
}

bool is_plain(const Operand& o) {
  return !o.mean && !o.weight.data && !o.bias.data && !o.scale.data && !o.factor.data &&
         o.activation == Activation::kNone;
}

bool fits_tma_of(const Operand& o, int32_t size, int32_t K) {
  return fits_tma(o.rows.data, o.rows.stride, o.sums_rows ? size : K);
}

bool fits(const Result& y, DType dtype, int32_t M) {
  const auto fits_rows = [M](const Rows& rows) {
    return !rows.data || fits_tma(rows.data, rows.stride, M);
  };
  return (y.dtype == dtype || y.dtype == DType::kFloat32) && !y.row_bias.data && !y.factor.data &&
         fits_tma(y.data, y.stride, M) && fits_rows(y.residual) && fits_rows(y.slope_of);
}

Params params_of(const Product& p, const MoveOnWrite& move) {
  Operand to{{p.result.data, 0, p.result.stride}, false};
  to.shift = move.shift, to.H = move.H, to.W = move.W;
  const ResultSm90 result{p.result, side_of(to, p.N, p.M, 2), p.M, p.N};
  return {side_of(p.rows, p.N, p.K, 2), result, p.K, p.splits, 1};
}

}  // namespace

bool fits_sm90(const Product& p, const MoveOnWrite& move) {
  if (!is_hopper() || (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16)) return false;
  constexpr int kMost = 1 << 30;  // what is added to a size before it is divided must fit too
  if (std::min({p.M, p.N, p.K}) < 1 || std::max({p.M, p.N, p.K}) > kMost) return false;
  if (p.images != 1 || !is_plain(p.columns) || !is_plain(p.rows)) return false;
  if (p.columns.shift || !fits_tma_of(p.columns, p.M, p.K)) return false;
  if (p.rows.shift ? p.columns.sums_rows : !fits_tma_of(p.rows, p.N, p.K)) return false;
  if (p.rows.sums_rows && !p.columns.sums_rows) return false;
  const Result& y = p.result;
  const bool activates = y.activation != Activation::kNone;
  const bool takes_others =
      p.columns.sums_rows ? !y.residual.data && (!activates || y.slope_of.data) : !y.slope_of.data;
  if (!takes_others) return false;
  const Params params = params_of(p, move);
  if (move.shift && (params.result.to.bytes < 16 || y.dtype != p.dtype)) return false;
  const Parts parts(params, 128);
  return parts.splits <= parts.chunks && parts.count() <= kMost && fits(y, p.dtype, p.M);
}

void launch_product_sm90(const Product& p, const MoveOnWrite& move, cudaStream_t stream) {
  const Params params = params_of(p, move);
  const auto launch = [&](auto type) {
    using T = typename decltype(type)::type;
    if (!p.columns.sums_rows) return launch_layout<T, Layout<false, false>>(p, params, stream);
    if (!p.rows.sums_rows) return launch_layout<T, Layout<true, false>>(p, params, stream);
    launch_layout<T, Layout<true, true>>(p, params, stream);
  };
  p.dtype == DType::kFloat16 ? launch(Type<__half>{}) : launch(Type<__nv_bfloat16>{});
}

}  // namespace shiftmlp
