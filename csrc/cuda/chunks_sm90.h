// Chunks of both operands of a product on sm_90a, on their way into shared memory.
#pragma once

#include "norm_sm90.h"
#include "normed_rows_sm90.h"

namespace shiftmlp {

constexpr int kRows = 128;        // of the result, that a block computes at a time,
constexpr int kGathersAhead = 2;  // chunks whose gathered copies may be under way

// How the operands lie: what is summed over are their rows in memory, or those rows' columns.
template <bool columns, bool rows>
struct Layout {
  static constexpr bool kColumnsSumRows = columns, kRowsSumRows = rows, kNormsRows = false;
};
// The rows are normed on their way into the product.
struct NormedRows : Layout<false, false> {
  static constexpr bool kNormsRows = true;
};

template <class T, int kColumns>
struct Shared {
  static constexpr int kPlaces = kColumns == 256 ? 4 : kColumns == 192 ? 5 : 6;
  static_assert(kPlaces >= kGathersAhead + 2);  // one is announced, and one is loaded

  // Lines of 64 terms for every row or column; or boxes of 64 rows or columns, a line for a term.
  struct alignas(1024) Chunk {
    Line<T> rows[kRows], columns[kColumns];
  } chunks[kPlaces];
  alignas(1024) Line<T> y[2][kRows / 2];
  OfColumn columns[2][kColumns];
  union {
    SharedNorm norm[2];                  // for the adjoint of one,
    OfColumn of_terms[kPlaces][kTerms];  // or what a norm of the rows takes from their columns
  };
  Mbarrier full[kPlaces], empty[kPlaces];

  // What TMA does not bring, all loaders tell of.
  __device__ void init(int loaders, int down, int across) {
    for (int i = 0; i < kPlaces; ++i) {
      mbarrier_init(full[i], loaders > 1 ? 1 + loaders : 1);
      mbarrier_init(empty[i], (down + across - 1) * kConsumers / 32);
    }
  }
};

// The places for chunks in turn, and the phase of their barriers.
template <int kPlaces>
struct Turn {
  int place{}, phase{};

  __device__ void next() {
    if (++place == kPlaces) place = 0, phase ^= 1;
  }
};

struct Params {
  Side rows;
  ResultSm90 result;
  int32_t images, K, splits;
  bool shares_columns, shares_rows;  // all images do
  int32_t down, across;              // blocks of a cluster: 1 or 2, by at most kMostBlocks in all
};

struct Maps {
  TensorMap rows, columns;
  ResultMaps results;
};

// The parts of the result that a cluster computes, `down` times kRows rows by `across` times so
// many columns, of which each block has its own; those of the last one may lie beyond the end.
// Neighbours in a row of parts come one after another: they are computed at the same time, from the
// same rows.
struct Parts {
  struct Part : Place {
    int32_t first, chunks;  // of the sum
  };

  int32_t columns, down, across;  // of a block, and blocks of a cluster
  int32_t wide, high;             // parts
  int32_t of_image;               // chunks
  int64_t chunks;                 // of all images,
  int32_t images;                 // and of how many images of the result

  __host__ __device__ Parts(const Params& p, int columns)
      : columns(columns),
        down(p.down),
        across(p.across),
        wide((p.result.M + across * columns - 1) / (across * columns)),
        high((p.result.N + down * kRows - 1) / (down * kRows)),
        of_image((p.K + kTerms - 1) / kTerms),
        chunks(int64_t{p.images} * of_image),
        images(p.splits > 0 ? p.splits : p.images) {}

  __host__ __device__ int64_t count() const { return int64_t{wide} * high * images; }

  // This block's are first(), and every step()th one from there on.
  __device__ int32_t first() const { return blockIdx.x / (down * across); }
  __device__ int32_t step() const { return gridDim.x / (down * across); }

  __device__ Part operator[](int32_t i) const {
    const int32_t image = i / (wide * high), place = i % (wide * high);
    const int32_t first = image * chunks / images, end = (image + 1) * chunks / images;
    const int32_t row = (place / wide * down + cluster_rank() / across) * kRows;
    const int32_t column = (place % wide * across + cluster_rank() % across) * columns;
    return {{image, row, column}, first, end - first};
  }
};

template <class T>
__device__ Pieces<T> pieces_of(Line<T>* rows, int32_t row, int32_t k) {
  const int thread = threadIdx.x % kWarpgroup, line = thread / 8, column = thread % 8 * kItems;
  constexpr int kDown = kWarpgroup / 8;
  return {swizzled(rows, line, column), row + line, k + column, kRows / kDown, kDown * 64, kDown};
}

// In how many boxes the blocks of a cluster load rows that they share.
__host__ __device__ inline int boxes_of_rows(int across) {
  return across > 4 ? 8 : across > 2 ? 4 : across;
}

// By a warpgroup if it gathers, by a warp if rows are normed, else by its first thread. Each block
// of a cluster loads a share of the columns' chunk for those below and above it, and of the rows'
// for those beside it.
template <class T, class Layout, int kColumns>
__device__ void load(Shared<T, kColumns>& shared, const Maps& maps, const Params& p,
                     const Parts& parts, bool gathers) {
  constexpr int kPlaces = Shared<T, kColumns>::kPlaces;
  constexpr int kLines = Layout::kColumnsSumRows ? kTerms : kColumns;
  const int below = cluster_rank() / p.across, beside = cluster_rank() % p.across;
  const int share = kLines / p.down * below, boxes = boxes_of_rows(p.across);
  const uint16_t same_columns = (1 | (p.down - 1) << p.across) << beside;
  const uint16_t same_rows = ((1 << p.across) - 1) << below * p.across;
  Turn<kPlaces> turn, landed;
  int under_way = 0;
  const auto announce = [&] {
    async_proxy_fence();
    mbarrier_arrive(shared.full[landed.place]);
    landed.next();
  };
  for (int32_t i = parts.first(); i < parts.count(); i += parts.step()) {
    const Parts::Part part = parts[i];
    for (int32_t chunk = part.first; chunk < part.first + part.chunks; ++chunk) {
      const int32_t image = chunk / parts.of_image, k = chunk % parts.of_image * kTerms;
      const int32_t of_columns = p.shares_columns ? 0 : image, of_rows = p.shares_rows ? 0 : image;
      Mbarrier& full = shared.full[turn.place];
      auto& [rows, columns] = shared.chunks[turn.place];
      mbarrier_wait(shared.empty[turn.place], turn.phase ^ 1);
      if (threadIdx.x == kConsumers) {
        mbarrier_arrive_expect(full, sizeof columns + (gathers ? 0 : sizeof rows));
        const auto load_share = [&](Line<T>* lines, const int (&at)[3]) {
          if (p.down == 1) return tma_load(lines, maps.columns, full, at);
          tma_multicast(lines, maps.columns, full, at, same_columns);
        };
        if constexpr (Layout::kColumnsSumRows) {
          for (int c = 0; c < kColumns; c += 64) {
            load_share(columns + c + share, {part.column + c, k + share, of_columns});
          }
        } else {
          load_share(columns + share, {k, part.column + share, of_columns});
        }
        if constexpr (Layout::kRowsSumRows) {
          for (int r = 0; r < kRows; r += 64) {
            tma_load(rows + r, maps.rows, full, {part.row + r, k, of_rows});
          }
        } else if (p.across > 1) {
          for (int box = beside; box < boxes; box += p.across) {
            const int line = kRows / boxes * box;
            tma_multicast(rows + line, maps.rows, full, {k, part.row + line, of_rows}, same_rows);
          }
        } else if (!gathers) {
          tma_load(rows, maps.rows, full, {k, part.row, of_rows});
        }
      }
      if constexpr (Layout::kNormsRows) {
        load_terms(shared.of_terms[turn.place], p.rows, k);
        mbarrier_arrive(full);
      }
      turn.next();
      if (!gathers) continue;
      copy_any(pieces_of(rows, part.row, k), p.rows, image);
      cp_async_commit();
      if (++under_way <= kGathersAhead) continue;
      cp_async_wait<kGathersAhead>();
      announce();
      --under_way;
    }
  }
  if (!gathers) return;
  cp_async_wait<0>();
  for (; under_way > 0; --under_way) announce();
}

}  // namespace shiftmlp
