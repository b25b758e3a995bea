// A layer over the channels is 2 M N K operations on 2 (M K + N K + M N) bytes: for 256 images of
// 196 tokens, 768 to 3072 channels, 237 GFLOP and 390 MB, 239 us of an H200's tensor cores (990
// TFLOP/s) and 81 us of its memory (4.8 TB/s).
//
// A block computes 128 rows by up to 256 columns of the result at a time, so that it reads a byte
// from L2 for every 85 operations. A warp loads chunks of both operands by TMA; of rows that a
// shift moves, four warps gather them. Each of two warpgroups multiplies 64 rows. The second starts
// late, and stays as many chunks behind as there are places for, so that one multiplies while the
// other one activates. Two blocks whose parts are one below another load half of the columns each
// for both: a byte from L2 for every 128 operations. Where a norm's adjoint wants a row's sums over
// all columns, blocks beside one another are in the cluster too, and share the rows.
#include "product_fits_sm90.h"

namespace shiftmlp {
namespace {

// What becomes of a sum: it is activated, or multiplied by a slope, or a norm's adjoint follows.
enum class Finish { kActivation, kSlope, kNorm };

// By both warpgroups.
template <class T, class Layout, Finish kFinish, int kColumns>
__device__ void multiply(Shared<T, kColumns>& shared, const ResultMaps& results, const Params& p,
                         const Parts& parts, bool gathers) {
  constexpr Major kRowsMajor = Layout::kRowsSumRows ? Major::kMN : Major::kK;
  constexpr Major kColumnsMajor = Layout::kColumnsSumRows ? Major::kMN : Major::kK;
  constexpr int kNextColumns = Layout::kColumnsSumRows ? kTerms * sizeof(Line<T>) : 16;
  constexpr int kPlaces = Shared<T, kColumns>::kPlaces;
  const int group = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
  Turn<kPlaces> turn;
  [[maybe_unused]] int exchange = 0;
  const int lane = threadIdx.x % 32, rank = cluster_rank();
  const bool loads_for_this =
      lane / p.across == rank / p.across || lane % p.across == rank % p.across;
  const auto hand_back = [&](int place) {
    if constexpr (Layout::kNormsRows) warp_barrier();  // all lanes have read theirs
    if (loads_for_this && lane < p.down * p.across) mbarrier_arrive_in(lane, shared.empty[place]);
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
      if constexpr (kFinish == Finish::kNorm) {  // whose sums go over all columns
        const bool inside = column < p.result.M;
        columns[c] = {0.0f, inside ? read(p.result.norm.weight, column, 1.0f) : 0.0f};
        continue;
      }
      if (column >= p.result.M) break;
      columns[c] = {read(p.result.y.column_bias, column), read(p.result.y.scale, column, 1.0f)};
    }
    [[maybe_unused]] const RowMoments moments(p.rows.operand, part.row, p.result.N);
    [[maybe_unused]] uint32_t normed[kTerms / 16][4];
    float sums[kColumns / 2];
    for (int32_t chunk = 0; chunk < part.chunks; ++chunk) {
      auto& [rows, terms] = shared.chunks[turn.place];
      mbarrier_wait(shared.full[turn.place], turn.phase);
      if constexpr (!Layout::kNormsRows) wgmma_fence();  // else before each product
#pragma unroll
      for (int k = 0; k < kTerms; k += 16) {
        const T* const b = Layout::kColumnsSumRows ? terms[k] : &terms[0][k];
        const uint64_t right = wgmma_operand(b, 1024, kNextColumns);
        const bool adds = chunk + k > 0;
        if constexpr (Layout::kNormsRows) {
          constexpr int kOthers = kTerms / 16 - 1;
          uint32_t (&left)[4] = normed[k / 16];
          wgmma_wait<kOthers>();  // the product before those has read these registers
          load_normed(left, rows + 64 * group, k, moments, shared.of_terms[turn.place]);
          wgmma_fence(left);
          wgmma<T, kColumns>(sums, left, right, adds);
          wgmma_commit();
        } else {
          const T* const a = Layout::kRowsSumRows ? rows[64 * group + k] : &rows[64 * group][k];
          wgmma<T, kColumns, kRowsMajor, kColumnsMajor>(sums, wgmma_operand(a), right, adds);
        }
      }
      if constexpr (!Layout::kNormsRows) {
        wgmma_commit();
        wgmma_wait<1>();
      }
      if (chunk > 0) hand_back(turn.place > 0 ? turn.place - 1 : kPlaces - 1);
      if (i == first && group == 0 && chunk == head_start) {
        named_barrier_arrive(1, kConsumers);
      }
      turn.next();
    }
    wgmma_wait<0>(sums);
    hand_back(turn.place > 0 ? turn.place - 1 : kPlaces - 1);
    named_barrier(2 + group, kWarpgroup);  // the columns are there
    if constexpr (kFinish == Finish::kNorm) {
      store_norm<T, kColumns>(shared.norm[group], shared.y[group], results.y, p.result, part, sums,
                              columns, p.across, exchange);
      exchange ^= 1;
    } else {
      constexpr bool kSlope = kFinish == Finish::kSlope;
      store_result<T, kSlope, kColumns>(shared.y[group], results, p.result, part, sums, columns);
    }
    named_barrier(2 + group, kWarpgroup);  // and free
  }
  if (thread == 0) tma_store_wait_read<0>();
}

template <class T, class Layout, Finish kFinish, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    product_sm90_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  auto& shared = shared_memory<Shared<T, kColumns>>();
  constexpr bool kMayGather = !Layout::kColumnsSumRows && !Layout::kNormsRows;
  const bool gathers = kMayGather && p.rows.operand.shift != nullptr;
  const unsigned loaders = Layout::kNormsRows ? 32 : gathers ? kWarpgroup : 1;
  if (threadIdx.x == 0) {
    shared.init(loaders, p.down, p.across);
    if constexpr (kFinish == Finish::kNorm) {
      for (SharedNorm& of_warpgroup : shared.norm) of_warpgroup.init(p.across);
    }
    mbarrier_init_fence();
  }
  cluster_barrier();
  const Parts parts(p, kColumns);
  if (threadIdx.x < kConsumers) {
    take_registers<kMayGather ? 216 : 232>();
    multiply<T, Layout, kFinish, kColumns>(shared, maps.results, p, parts, gathers);
  } else {
    give_registers<kMayGather ? 72 : 40>();
    if (threadIdx.x - kConsumers < loaders) {
      load<T, Layout, kColumns>(shared, maps, p, parts, gathers);
    }
  }
  cluster_barrier();  // others hand places back to this block until they have read them all
}

template <class T, int kColumns>
constexpr size_t kBytes = sizeof(Shared<T, kColumns>);

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

// For parts of so many columns: `count` clusters run at the same time, and the busiest computes
// `most` parts.
struct Clusters {
  int columns, down, across;
  int64_t count, most;

  // The time of the busiest block.
  int64_t cost() const {
    constexpr int kFixed = 32;  // of a part, in columns
    return most * (columns + kFixed);
  }
};

template <class T, class Layout, Finish kFinish, int kColumns>
Clusters clusters_of(Params p) {
  if (p.result.norm.mean) p.across = (p.result.M + kColumns - 1) / kColumns;
  if (p.across > kMostBlocks) return {kColumns, 0, 0, 0, std::numeric_limits<int32_t>::max()};
  const auto with = [&p](int down) -> Clusters {
    p.down = down;
    // A cluster lies in one part of the device, which holds an even number of multiprocessors.
    const int64_t count =
        p.across == 1 ? multiprocessors() / down
                      : active_clusters(product_sm90_kernel<T, Layout, kFinish, kColumns>,
                                        down * p.across, dim3(kThreads), kBytes<T, kColumns>);
    return {kColumns, down, p.across, count, (Parts(p, kColumns).count() + count - 1) / count};
  };
  if (p.result.N <= kRows || 2 * p.across > kMostBlocks) return with(1);
  const Clusters pairs = with(2);
  // Blocks across alone would each load all of their columns.
  return p.across > 1 || pairs.most <= with(1).most ? pairs : with(1);
}

template <class T, class Layout, Finish kFinish, int kColumns>
void launch_for(const Product& product, Params p, const Clusters& clusters, cudaStream_t stream) {
  static_assert(kBytes<T, kColumns> <= kSharedLimit);
  p.down = clusters.down, p.across = clusters.across;
  Maps maps{};
  maps.columns = map_of<T>(product.columns, product.images, product.M, product.K, kColumns, p.down);
  if (!product.rows.shift) {
    const int boxes = boxes_of_rows(p.across);
    maps.rows = map_of<T>(product.rows, product.images, product.N, product.K, kRows, boxes);
  }
  const Result& y = product.result;
  const auto map_of_result = [&](const void* data) {
    return map_of<T>(data, y.stride_b, y.stride, product.images, product.N, product.M, kRows / 2);
  };
  if (y.dtype == product.dtype) maps.results.y = map_of_result(y.data);
  if (y.inner) maps.results.inner = map_of_result(y.inner);
  const int blocks = p.down * p.across;
  const int64_t count = std::min(Parts(p, kColumns).count(), clusters.count);
  launch_clusters(product_sm90_kernel<T, Layout, kFinish, kColumns>, blocks, dim3(count * blocks),
                  dim3(kThreads), kBytes<T, kColumns>, stream, maps, p);
}

template <class T, class Layout, Finish kFinish>
void launch_layout(const Product& product, const Params& p, cudaStream_t stream) {
  const Clusters wide = clusters_of<T, Layout, kFinish, 256>(p);
  const Clusters middle = clusters_of<T, Layout, kFinish, 192>(p);
  const Clusters narrow = clusters_of<T, Layout, kFinish, 128>(p);
  if (wide.cost() <= std::min(middle.cost(), narrow.cost())) {
    return launch_for<T, Layout, kFinish, 256>(product, p, wide, stream);
  }
  if (middle.cost() <= narrow.cost()) {
    return launch_for<T, Layout, kFinish, 192>(product, p, middle, stream);
  }
  launch_for<T, Layout, kFinish, 128>(product, p, narrow, stream);
}

Params params_of(const Product& p, const MoveOnWrite& move, const NormAdjoint& norm) {
  Operand to{{p.result.data, 0, p.result.stride}, false};
  to.shift = move.shift, to.H = move.H, to.W = move.W;
  const ResultSm90 result{p.result, side_of(to, p.N, p.M, 2), norm, p.M, p.N};
  return {side_of(p.rows, p.N, p.K, 2),
          result,
          static_cast<int32_t>(p.images),
          p.K,
          p.splits,
          p.columns.rows.stride_b == 0,
          p.rows.rows.stride_b == 0,
          1,
          1};
}

}  // namespace

bool fits_sm90(const Product& p, const MoveOnWrite& move, const NormAdjoint& norm) {
  if (!is_hopper() || (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16)) return false;
  constexpr int kMost = 1 << 30;  // what is added to a size before it is divided must fit too
  if (std::min<int64_t>({p.M, p.N, p.K, p.images}) < 1) return false;
  if (std::max<int64_t>({p.M, p.N, p.K, p.images}) > kMost) return false;
  if (!is_plain(p.columns) || p.columns.shift) return false;
  if (!is_plain(p.rows) && !fits_norm_of_rows(p)) return false;
  if (!fits_tma_of(p.columns, p.M, p.K)) return false;
  if (p.rows.shift ? p.columns.sums_rows : !fits_tma_of(p.rows, p.N, p.K)) return false;
  if (p.rows.sums_rows && !p.columns.sums_rows) return false;
  if (!fits_result(p) || !fits_norm(p, norm)) return false;
  const Params params = params_of(p, move, norm);
  const bool moves = params.result.to.bytes == 16 && p.result.dtype == p.dtype && p.images == 1;
  if (move.shift && (!moves || norm.x.data)) return false;
  const Parts parts(params, 128);
  return parts.images <= parts.chunks && std::max(parts.chunks, parts.count()) <= kMost;
}

void launch_product_sm90(const Product& p, const MoveOnWrite& move, const NormAdjoint& norm,
                         cudaStream_t stream) {
  const Params params = params_of(p, move, norm);
  const auto launch = [&](auto type) {
    using T = typename decltype(type)::type;
    using Forward = Layout<false, false>;
    using Gradient = Layout<true, false>;
    using OfWeight = Layout<true, true>;
    if (!is_plain(p.rows)) {
      return launch_layout<T, NormedRows, Finish::kActivation>(p, params, stream);
    }
    if (!p.columns.sums_rows) {
      return launch_layout<T, Forward, Finish::kActivation>(p, params, stream);
    }
    if (p.rows.sums_rows) return launch_layout<T, OfWeight, Finish::kSlope>(p, params, stream);
    if (norm.x.data) return launch_layout<T, Gradient, Finish::kNorm>(p, params, stream);
    if (has_slope(p)) return launch_layout<T, Gradient, Finish::kSlope>(p, params, stream);
    launch_layout<T, Gradient, Finish::kActivation>(p, params, stream);
  };
  p.dtype == DType::kFloat16 ? launch(Type<__half>{}) : launch(Type<__nv_bfloat16>{});
}

}  // namespace shiftmlp
