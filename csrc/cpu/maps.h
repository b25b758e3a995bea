// Passes over maps, (1, positions, channels), that the gradients of the channel ops are made of. In
// between, maps are kept in the accumulator's type, or `rounded` to bfloat16.
#pragma once

#include "channels.h"
#include "partial_sums.h"
#include "tokens.h"

namespace shiftmlp {

template <class Acc>
Images map_of(const Tensor& x, int64_t positions, int64_t channels) {
  return Images::of(torch::stable::reshape(x, {1, positions, channels}), Acc{}, "a map");
}

template <class Acc>
Images new_map(const Images& like, int64_t channels, bool rounded) {
  const auto dtype = rounded ? torch::headeronly::ScalarType::BFloat16 : kScalarType<Acc>;
  return map_of<Acc>(torch::stable::new_empty(like.x, {1, like.rows, channels}, dtype), like.rows,
                     channels);
}

// Never rounded, as layers on their own do not round them: the norm's gradients would show it.
template <class Acc>
Images new_slopes(const Images& like, int64_t channels) {
  return new_map<Acc>(like, channels, false);
}

// The norm over the channels of every position.
template <class Acc>
struct PositionNorm {
  const TokenNorm<Acc> norm;

  PositionNorm(const Images& x, const NormArgs& args)
      : norm(x, args.kind, args.weight, args.bias, args.eps) {}

  // From a position and a channel on.
  Norm<Acc> at(int64_t position, int64_t channel) const {
    Norm<Acc> from = norm.at(0, channel);
    if (from.mean != nullptr) from.mean += position, from.rstd += position;
    return from;
  }
};

// Some positions of a map, as the lanes of a tile.
struct Tile {
  int64_t position, count, blocks;

  template <class Acc>
  Transfer<Acc> of(const Images& map, int64_t channel, int64_t channels, Norm<Acc> norm) const {
    return {map.at(0, position, channel), count, channels, true, norm, nullptr, {}, {}};
  }
};

// Multiplies a layer's left operand by a map: load(tile, first row, rows, at) fills some of a
// tile's rows, and put(tile, first row, rows, at) takes some of the result's. In their tiles there
// is room for `loads` and `puts` times as many; the second of two has the activation's slopes.
template <class Acc, class Load, class Put>
void multiply_map(const Product<Acc>& layer, int64_t positions, int64_t loads, int64_t puts,
                  const Load& load, const Put& put) {
  const int64_t N = layer.N, K = layer.K;
  const Operand w = layer.left;
  constexpr int64_t kPiece = 512;
  const Engine<Acc>& run = engine<Acc>();
  // Only the longer side is cut, so that nothing is loaded twice.
  const int64_t some_k = K > N ? std::min(K, kPiece) : K, some_n = K > N ? N : std::min(N, kPiece);
  const int64_t rows_in_all = loads * some_k + puts * some_n;
  const Tiling<Acc> tiling(rows_in_all, positions);
  const int64_t lanes = tiling.lanes, panel_size = run.scratch(some_k, lanes);
  const int64_t memory = rows_in_all * lanes + panel_size + 3 * 16;
  const int64_t size = size_of(w.dtype);
  const auto task = [&](int64_t position, int64_t count, int64_t blocks, auto& scratch) {
    const Tile at{position, count, blocks};
    Acc *in = scratch.take(loads * some_k * lanes), *out = scratch.take(puts * some_n * lanes);
    Acc* const panel = scratch.take(panel_size);
    int64_t n = 0, k;
    do {
      const int64_t rows = std::min(some_n, N - n);
      k = 0;
      do {
        const int64_t terms = std::min(some_k, K - k);
        if (n == 0) load(in, k, terms, at);
        const bool last = k + terms == K;
        Product<Acc> product = layer;
        product.left.data = static_cast<const char*>(w.data) + (n * w.row + k * w.column) * size;
        product.left.block = terms, product.left.zeros = last ? w.zeros : 0;
        product.right = in, product.out = out, product.scratch = panel;
        product.N = rows, product.K = terms, product.lanes = count;
        product.bias = layer.bias != nullptr && k == 0 ? layer.bias + n : nullptr;
        product.activation = last ? layer.activation : Activation::kNone;
        product.accumulate = k > 0;
        product.slopes = puts > 1 ? out + rows * blocks * run.lanes : nullptr;
        run.multiply(product);
      } while ((k += some_k) < K);
      put(out, n, rows, at);
    } while ((n += some_n) < N);
  };
  for_each_tile<Acc>(positions, tiling, memory, (N + 1) * K, task);
}

// y = activation(w * norm(x) + b) and the activation's slopes, if it is not None. What is null is
// left out.
template <class Acc>
void forward(const Linear<Acc>& linear, const Images& x, const PositionNorm<Acc>& norm,
             bool rounded, const Images* y, const Images* slopes) {
  const Engine<Acc>& run = engine<Acc>();
  const auto load = [&](Acc* tile, int64_t k, int64_t rows, Tile at) {
    run.pack(at.of(x, k, rows, norm.at(at.position, k)), tile);
  };
  const auto put = [&](Acc* tile, int64_t n, int64_t rows, Tile at) {
    if (y != nullptr) run.unpack(tile, at.of<Acc>(*y, n, rows, {}));
    if (slopes == nullptr) return;
    run.unpack(tile + rows * at.blocks * run.lanes, at.of<Acc>(*slopes, n, rows, {}));
  };
  Product<Acc> layer = linear.product(nullptr, 0, nullptr);
  layer.rounded = rounded && linear.pairs();
  multiply_map<Acc>(layer, x.rows, 1, slopes == nullptr ? 1 : 2, load, put);
}

// dx = w^T * dinner, where dinner = dy * slopes is kept, or dy without slopes. Without dx only
// dinner is made.
template <class Acc>
void backward(const Linear<Acc>& linear, const Images& dy, const Images* slopes,
              const Images& dinner, const Images* dx) {
  const Engine<Acc>& run = engine<Acc>();
  const auto load = [&](Acc* tile, int64_t n, int64_t rows, Tile at) {
    run.pack(at.of<Acc>(dy, n, rows, {}), tile);
    if (slopes == nullptr) return;
    const int64_t size = rows * at.blocks * run.lanes;
    run.pack(at.of<Acc>(*slopes, n, rows, {}), tile + size);
    run.activate_backward(linear.activation, tile + size, size, tile);
    run.unpack(tile, at.of<Acc>(dinner, n, rows, {}));
  };
  const auto put = [&](Acc* tile, int64_t k, int64_t rows, Tile at) {
    if (dx != nullptr) run.unpack(tile, at.of<Acc>(*dx, k, rows, {}));
  };
  constexpr int64_t kMany = 128;  // positions, which repay that the weights are turned for all
  const bool turn = dx != nullptr && dy.rows >= kMany;
  const Matrix turned = linear.turned(turn);
  Product<Acc> layer = linear.backward(nullptr, 0, nullptr, turned, {});
  if (dx == nullptr) layer.N = 0;
  multiply_map<Acc>(layer, dy.rows, slopes == nullptr ? 1 : 2, 1, load, put);
}

// The sum over the positions of norm(x) * factor, or of norm(x).
template <class Acc>
void sum_positions(const Images& x, const PositionNorm<Acc>& norm, const Images* factor,
                   const OptionalTensor& result) {
  if (!result) return;
  const int64_t columns = x.columns, lanes = engine<Acc>().lanes;
  const int64_t tiles = ceil_div(x.rows, lanes);
  PartialSums<Acc> sums(tiles, 16 * lanes * columns);
  const int64_t handle = sums.add(result, 1, columns);
  sums.run([&](int64_t begin, int64_t end, const auto& sum) {
    Scratch<Acc> scratch(columns * lanes + 16);
    Acc* const tile = scratch.take(columns * lanes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t position = task * lanes, count = std::min(lanes, x.rows - position);
      Transfer<Acc> from = Tile{position, count, 1}.of(x, 0, columns, norm.at(position, 0));
      if (factor != nullptr) from.factor = factor->at(0, position, 0);
      engine<Acc>().pack(from, tile);
      engine<Acc>().sum_lanes(tile, columns, count, false, sum(handle));
    }
  });
}

// The gradients of x, weight and bias of a norm whose result has the gradient dy. dx may be dy.
template <class Acc>
void norm_gradients(const Images& dy, const Images& x, const PositionNorm<Acc>& norm,
                    const Images* dx, const OptionalTensor& weight, const OptionalTensor& bias) {
  constexpr int64_t kStrip = 32;
  const int64_t columns = x.columns;
  PartialSums<Acc> sums(ceil_div(x.rows, kStrip), kStrip * columns * 64);
  const int64_t dweight = sums.add(weight, 1, columns), dbias = sums.add(bias, 1, columns);
  sums.run([&](int64_t begin, int64_t end, const auto& sum) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t position = strip * kStrip, count = std::min(kStrip, x.rows - position);
      engine<Acc>().norm_backward(
          dy.at(0, position, 0),
          {x.at(0, position, 0), count, columns, false, norm.at(position, 0), nullptr, {}, {}},
          dx == nullptr ? Rows{} : dx->at(0, position, 0), sum(dweight), sum(dbias));
    }
  });
}

// dw = dy^T * norm(x), a square of it at a time. The positions are summed by strips; squares too
// few to go round are summed in parts, dealt by sizes alone. The factors may be `rounded` to
// bfloat16, as layers on their own would have them, where that is faster.
template <class Acc>
void weight_gradient(const Images& dy, const Images& x, const PositionNorm<Acc>& norm, bool rounded,
                     Tensor dw) {
  constexpr int64_t kSide = 256, kStrip = 256, kTasks = 16;
  const Engine<Acc>& run = engine<Acc>();
  const int64_t N = dy.columns, K = x.columns;
  check_shape(dw, {N, K}, "the gradient of a weight");
  readable<Acc>(dw, "the gradient of a weight");
  const int64_t across = ceil_div(K, kSide), squares = ceil_div(N, kSide) * across;
  if (squares == 0) return;
  const int64_t strips = ceil_div(x.rows, kStrip);
  const int64_t parts = std::clamp<int64_t>(kTasks / squares, 1, strips);
  const bool direct = parts == 1 && dtype_of(dw) == kDType<Acc> && dw.is_contiguous();
  const Tensor sums = direct ? torch::stable::reshape(dw, {1, N, K})
                             : torch::stable::new_empty(dw, {parts, N, K}, kScalarType<Acc>);
  const Images sum = Images::of(sums, Acc{}, "dw");
  const int64_t panel_size = run.scratch(kStrip, kSide);
  parallel(parts * squares, x.rows * kSide * kSide / parts, [&](int64_t begin, int64_t end) {
    Scratch<Acc> scratch(kSide * (kStrip + kSide) + panel_size + 3 * 16);
    Acc *right = scratch.take(kSide * kStrip), *out = scratch.take(kSide * kSide);
    Acc* panel = scratch.take(panel_size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / squares, square = task % squares;
      const int64_t n = square / across * kSide, k = square % across * kSide;
      const int64_t rows = std::min(kSide, N - n), columns = std::min(kSide, K - k);
      const int64_t first = part * strips / parts, last = (part + 1) * strips / parts;
      for (int64_t strip = first; strip < last; ++strip) {
        const int64_t position = strip * kStrip, count = std::min(kStrip, x.rows - position);
        run.pack(
            {x.at(0, position, k), count, columns, false, norm.at(position, k), nullptr, {}, {}},
            right);
        const Operand left{dy.at(0, position, n).data, dy.dtype, 1, dy.x.stride(1), count};
        run.multiply({left, right, nullptr, out, rows, count, columns, Activation::kNone,
                      strip > first, panel, nullptr, rounded});
      }
      run.unpack(out, {sum.at(part, n, k), rows, columns, false, {}, nullptr, {}, {}});
    }
  });
  if (direct) return;
  Acc* const all = static_cast<Acc*>(sums.mutable_data_ptr());
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < N * K; ++i) all[i] += all[part * N * K + i];
  }
  torch::stable::copy_(dw, torch::stable::select(sums, 0, 0));
}

}  // namespace shiftmlp
