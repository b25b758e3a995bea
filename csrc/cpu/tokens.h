// What the ops that mix tokens share: channels are the lanes, so that nothing is transposed.
#pragma once

#include "linear.h"

namespace shiftmlp {

// The norm over the channels of every token.
template <class Acc>
class TokenNorm {
 public:
  TokenNorm(const Images& x, const std::string& kind, const OptionalTensor& weight,
            const OptionalTensor& bias, double eps)
      : rows_(x.rows),
        weight_(weight, x.columns, "the weight of a norm"),
        bias_(bias, x.columns, "the bias of a norm") {
    STD_TORCH_CHECK(kind == "none" || kind == "affine" || kind == "layer_norm", "no norm ", kind);
    if (kind != "layer_norm") return;
    const int64_t tokens = x.count * x.rows;
    mean_.resize(tokens), rstd_.resize(tokens);
    parallel(tokens, 2 * x.columns, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin % rows_, rows = std::min(rows_ - row, end - begin);
        engine<Acc>().moments(x.at(begin / rows_, row, 0), rows, x.columns, eps, &mean_[begin],
                              &rstd_[begin]);
        begin += rows;
      }
    });
  }

  // For the channels from `channel` on of one image.
  Norm<Acc> at(int64_t image, int64_t channel) const {
    const int64_t token = image * rows_;
    const bool layer = !mean_.empty();
    return {layer ? &mean_[token] : nullptr, layer ? &rstd_[token] : nullptr, weight_.at(channel),
            bias_.at(channel)};
  }

 private:
  int64_t rows_;
  std::vector<double> mean_, rstd_;
  Vector<Acc> weight_, bias_;
};

// Some channels of one image, and where its numbers stand.
struct Piece {
  int64_t image, channel, channels;
};

// Calls f(piece, scratch) for every tile of channels of every image. `memory` counts the numbers
// that f keeps in scratch, for each block of lanes and once.
template <class Acc, class F>
void for_each_piece(int64_t images, int64_t channels, const Tiling<Acc>& tiling, int64_t memory,
                    int64_t work, const F& f) {
  const int64_t tiles = ceil_div(channels, tiling.lanes);
  parallel(images * tiles, work * tiling.lanes, [&](int64_t begin, int64_t end) {
    Scratch<Acc> scratch(memory);
    for (int64_t task = begin; task < end; ++task, scratch.reset()) {
      const int64_t channel = task % tiles * tiling.lanes;
      f(Piece{task / tiles, channel, std::min(tiling.lanes, channels - channel)}, scratch);
    }
  });
}

}  // namespace shiftmlp
