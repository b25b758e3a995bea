// Sums over all tasks of a call, the same to the bit for every number of threads.
#pragma once

#include <cstring>

#include "operands.h"

namespace shiftmlp {

// The tasks are dealt to parts by sizes alone. Each part sums for itself, in order; then the parts
// are added, pair by pair.
template <class Acc>
class PartialSums {
 public:
  static constexpr int64_t kWorkPerPart = 1 << 25, kMaxParts = 16;
  static constexpr int64_t kWorkPerNumber = 1 << 9;  // which repays another part's number

  // For `tasks` of `work` multiply-adds each.
  PartialSums(int64_t tasks, int64_t work) : tasks_(tasks), work_(tasks * work) {}

  // A result (rows, columns), or (columns,), which is summed as it stands or `turned`; returns its
  // handle. Without a tensor there is no sum.
  int64_t add(const OptionalTensor& result, int64_t rows, int64_t columns, bool turned = false) {
    if (result) {
      readable<Acc>(*result, "a gradient");
      STD_TORCH_CHECK(result->numel() == rows * columns && result->is_contiguous(),
                      "a gradient must be contiguous with ", rows * columns, " elements, got ",
                      result->numel());
    }
    sums_.push_back({result, rows, columns, turned, size_});
    const int64_t unit = engine<Acc>().lanes;
    const int64_t size = ceil_div(turned ? rows : columns, unit) * unit * (turned ? columns : rows);
    numbers_ += size;
    if (result) size_ += size;
    return static_cast<int64_t>(sums_.size()) - 1;
  }

  // Calls f(begin, end, sums) for the tasks of every part, where sums(handle, column) is a tile
  // from a column of its first row on, or null.
  template <class F>
  void run(const F& f) {
    const int64_t most = std::clamp<int64_t>(tasks_, 1, kMaxParts);
    const int64_t repaid = std::max(kWorkPerPart, kWorkPerNumber * numbers_);
    const int64_t parts = std::clamp<int64_t>(work_ / repaid, 1, most);
    Scratch<Acc> memory(parts * size_ + 16);
    Acc* const all = memory.take(parts * size_);
    parallel(parts, kWorkPerPart, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        Acc* const own = all + part * size_;
        std::memset(own, 0, size_ * sizeof(Acc));
        f(part * tasks_ / parts, (part + 1) * tasks_ / parts,
          [&](int64_t handle, int64_t column = 0) {
            return sums_[handle].result ? own + sums_[handle].offset + column : nullptr;
          });
      }
    });
    for (int64_t step = 1; step < parts; step *= 2) {
      for (int64_t part = 0; part + step < parts; part += 2 * step) {
        Acc *const to = all + part * size_, *const from = to + step * size_;
        for (int64_t i = 0; i < size_; ++i) to[i] += from[i];
      }
    }
    for (const Sum& sum : sums_) {
      if (!sum.result || sum.result->numel() == 0) continue;
      const Rows memory{sum.result->mutable_data_ptr(), dtype_of(*sum.result), sum.columns};
      engine<Acc>().unpack(all + sum.offset,
                           {memory, sum.rows, sum.columns, sum.turned, {}, nullptr, {}, {}});
    }
  }

 private:
  struct Sum {
    OptionalTensor result;
    int64_t rows, columns;
    bool turned;
    int64_t offset;
  };
  int64_t tasks_, work_, size_ = 0;
  int64_t numbers_ = 0;  // with the results that are not wanted, which must not change the others
  std::vector<Sum> sums_;
};

}  // namespace shiftmlp
