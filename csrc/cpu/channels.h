// What the ops that mix channels share: the lanes are positions, turned while they are packed.
#pragma once

#include "linear.h"

namespace shiftmlp {

// The norm over the channels of every position.
template <class Acc>
struct ChannelNorm {
  bool layer;
  double eps;
  Vector<Acc> weight, bias;

  ChannelNorm(const NormArgs& args, int64_t channels)
      : layer(args.kind == "layer_norm"),
        eps(args.eps),
        weight(args.weight, channels, "the weight of a norm"),
        bias(args.bias, channels, "the bias of a norm") {
    STD_TORCH_CHECK(layer || args.kind == "none" || args.kind == "affine", "no norm ", args.kind);
  }

  // tile = norm(x), turned.
  void pack(Rows x, int64_t rows, int64_t columns, bool paired, Acc* tile) const {
    double mean[kMaxLanes], rstd[kMaxLanes];
    if (layer) engine<Acc>().moments(x, rows, columns, eps, mean, rstd);
    engine<Acc>().pack({x, rows, columns, true, with(mean, rstd), nullptr, {}, {}, paired}, tile);
  }
  // to.memory = norm(tile), turned, and what `to` does with it.
  void unpack(const Acc* tile, int64_t blocks, Transfer<Acc> to) const {
    double mean[kMaxLanes], rstd[kMaxLanes];
    if (layer) engine<Acc>().lane_moments(tile, to.columns, blocks, eps, mean, rstd);
    to.norm = with(mean, rstd);
    engine<Acc>().unpack(tile, to);
  }

 private:
  Norm<Acc> with(const double* mean, const double* rstd) const {
    return {layer ? mean : nullptr, layer ? rstd : nullptr, weight.at(0), bias.at(0)};
  }
};

// y = residual + scale * post_norm(tile), for the positions of a tile.
template <class Acc>
struct Finish {
  const Images y, residual;
  const ChannelNorm<Acc> norm;
  const Vector<Acc> scale;

  Finish(const Tensor& result, const OptionalTensor& scale, const OptionalTensor& residual,
         const NormArgs& args)
      : y(Images::result(result, Acc{}, "y")),
        residual(residual ? Images::of(*residual, Acc{}, "residual") : Images{result}),
        norm(args, y.columns),
        scale(scale, y.columns, "scale") {
    STD_TORCH_CHECK(y.count == 1, "y must be one image");
    check_shape(this->residual.x, {1, y.rows, y.columns}, "residual");
  }

  void operator()(const Acc* tile, int64_t position, int64_t count, int64_t blocks) const {
    const Rows rest = residual.data ? residual.at(0, position, 0) : Rows{};
    norm.unpack(tile, blocks,
                {y.at(0, position, 0), count, y.columns, true, {}, scale.at(0), {}, rest});
  }
};

// Calls f(first position, count, blocks, scratch) for every tile of positions. Tiles differ by a
// block at most: a small one would read all weights for little, while another thread waits.
template <class Acc, class F>
void for_each_tile(int64_t positions, const Tiling<Acc>& tiling, int64_t memory, int64_t work,
                   const F& f) {
  const int64_t tiles = ceil_div(positions, tiling.lanes), blocks = tiling.blocks_of(positions);
  const auto first = [&](int64_t tile) {
    return std::min(positions, blocks * tile / tiles * engine<Acc>().lanes);
  };
  parallel(tiles, work * tiling.lanes, [&](int64_t begin, int64_t end) {
    Scratch<Acc> scratch(memory);
    for (int64_t tile = begin; tile < end; ++tile, scratch.reset()) {
      const int64_t position = first(tile), count = first(tile + 1) - position;
      f(position, count, tiling.blocks_of(count), scratch);
    }
  });
}

}  // namespace shiftmlp
