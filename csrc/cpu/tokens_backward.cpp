// The gradients of token_linear, token_mlp and token_gate on the CPU. A tile of channels of one
// image goes forward again and then back, so that the forward keeps nothing.
#include "partial_sums.h"
#include "tokens.h"

namespace shiftmlp {
namespace {

struct LinearGradients {
  OptionalTensor w, b;
};

// Where the gradients of a mixture go.
struct Wanted {
  OptionalTensor x, norm_weight, norm_bias;
  std::vector<LinearGradients> layers;
  OptionalTensor scale, factor;
};

template <class Acc>
struct Mixture {
  const Images dy, x;
  const TokenNorm<Acc> norm;
  const std::vector<Linear<Acc>> layers;
  const Vector<Acc> scale;
  const Images factor;
};

// Memory for the gradient of `x`, if it is wanted.
template <class Acc>
Images result(const OptionalTensor& gradient, const Images& x, Acc zero, const char* name) {
  if (!gradient) return {x.x};
  check_shape(*gradient, {x.count, x.rows, x.columns}, name);
  return Images::result(*gradient, zero, name);
}

// The gradient of x through its LayerNorm, from that of the norm's result, kept in the
// accumulator's type.
template <class Acc>
void norm_backward(const Mixture<Acc>& mix, const Images& dnormed, const Wanted& wanted) {
  const Images& x = mix.x;
  const Images dx = result(wanted.x, x, Acc{}, "the gradient of x");
  PartialSums<Acc> sums(x.count, PartialSums<Acc>::kWorkPerPart);  // many parts: they are short
  const int64_t weight = sums.add(wanted.norm_weight, 1, x.columns);
  const int64_t bias = sums.add(wanted.norm_bias, 1, x.columns);
  sums.run([&](int64_t begin, int64_t end, const auto& sum) {
    for (int64_t image = begin; image < end; ++image) {
      engine<Acc>().norm_backward(
          dnormed.at(image, 0, 0),
          {x.at(image, 0, 0), x.rows, x.columns, false, mix.norm.at(image, 0), nullptr, {}, {}},
          dx.data ? dx.at(image, 0, 0) : Rows{}, sum(weight), sum(bias));
    }
  });
}

// The adjoint of an affine norm for some channels of an image, from the tile of its result's
// gradient.
template <class Acc>
void affine_backward(const Mixture<Acc>& mix, Piece at, const Acc* dnormed, const Images& dx,
                     Acc* dweight, Acc* dbias) {
  const Engine<Acc>& run = engine<Acc>();
  const Images& x = mix.x;
  for (int64_t lane = 0; lane < at.channels; lane += run.lanes) {
    const int64_t c = at.channel + lane, count = std::min(run.lanes, at.channels - lane);
    const auto from = [&](Acc* sums) { return sums == nullptr ? nullptr : sums + lane; };
    run.norm_backward(
        {const_cast<Acc*>(dnormed) + lane * x.rows, kDType<Acc>, run.lanes},
        {x.at(at.image, 0, c), x.rows, count, false, mix.norm.at(at.image, c), nullptr, {}, {}},
        dx.data ? dx.at(at.image, 0, c) : Rows{}, from(dweight), from(dbias));
  }
}

// Through everything but a LayerNorm, whose adjoint takes all channels of a token.
template <class Acc>
void mix_backward(const Mixture<Acc>& mix, bool affine, const Wanted& wanted) {
  const Engine<Acc>& run = engine<Acc>();
  const Images &x = mix.x, &dy = mix.dy;
  const Linear<Acc>&first = mix.layers.front(), &last = mix.layers.back();
  const bool two = mix.layers.size() > 1;
  first.check_rows(x.rows);
  if (two) last.check_rows(first.N);
  check_shape(dy.x, {x.count, last.N, x.columns}, "dy");
  const Images dx = result(wanted.x, x, Acc{}, "the gradient of x");
  const Images du = result(wanted.factor, dy, Acc{}, "the gradient of u");

  const int64_t hidden = two ? first.N : 0, inner = last.K;
  const bool rounded = in_bfloat16(x, dy);
  const bool paired = rounded && run.rounds && first.pairs() && last.pairs();
  // Beside a scale the tiles of the last layer are not, as its gradient is made of them.
  const bool scaled = mix.scale.at(0) != nullptr, all_paired = paired && !scaled;
  const bool in_paired = two ? paired : all_paired;
  const int64_t in_rows = tile_rows<Acc>(first.K, in_paired);
  const int64_t hidden_rows = tile_rows<Acc>(hidden, all_paired);
  const int64_t dinner_rows = two ? hidden_rows : inner;
  const int64_t dout_rows = tile_rows<Acc>(last.N, all_paired);
  const int64_t turned_rows = ceil_div(std::max(first.K, last.N), run.lanes) * run.lanes;
  const int64_t rows = in_rows + hidden + hidden_rows + dinner_rows + dout_rows + turned_rows;
  // What is not at hand in a product may lie farther away.
  const Tiling<Acc> tiling(std::max({first.K, hidden, last.N}));
  const int64_t lanes = tiling.lanes;
  const int64_t most = std::max({first.K, first.N, last.K, last.N, lanes});
  const int64_t panel_size = run.scratch(most, most);
  const int64_t memory = rows * lanes + panel_size + 8 * 16;

  const int64_t tiles = ceil_div(x.columns, lanes);
  // Products that read paired tiles are fast, and what adds the parts is not.
  const int64_t work = 3 * lanes * (first.N * first.K + hidden * last.N) / (paired ? 4 : 1);
  PartialSums<Acc> sums(x.count * tiles, work);
  const LinearGradients none, &of_first = two ? wanted.layers.front() : none;
  const int64_t dw1 = sums.add(of_first.w, hidden, first.K);
  const int64_t db1 = sums.add(of_first.b, 1, hidden);
  const int64_t dw = sums.add(wanted.layers.back().w, last.N, last.K, true);
  const int64_t db = sums.add(wanted.layers.back().b, 1, last.N);
  const int64_t dscale = sums.add(wanted.scale, 1, x.columns);
  const int64_t dnorm_weight = sums.add(wanted.norm_weight, 1, x.columns);
  const int64_t dnorm_bias = sums.add(wanted.norm_bias, 1, x.columns);
  // How far back the wanted ones reach.
  const bool to_input = wanted.x || (affine && (wanted.norm_weight || wanted.norm_bias));
  const bool into_hidden = to_input || of_first.w || of_first.b;
  const bool into_last = into_hidden || wanted.scale;
  // What the only layer has for x goes into memory as it is, but for the scale.
  const bool direct = !two && to_input && !affine && !wanted.scale;

  const Matrix first_turned = first.turned(two && to_input);
  const Matrix last_turned = last.turned(into_last);
  sums.run([&](int64_t begin, int64_t end, const auto& sum) {
    Scratch<Acc> scratch(memory);
    for (int64_t task = begin; task < end; ++task, scratch.reset()) {
      const int64_t image = task / tiles, c = task % tiles * lanes;
      const int64_t count = std::min(lanes, x.columns - c), blocks = tiling.blocks_of(count);
      Acc *in = scratch.take(in_rows * lanes), *slopes = scratch.take(hidden * lanes);
      Acc *activated = scratch.take(hidden_rows * lanes), *panel = scratch.take(panel_size);
      Acc *dout = scratch.take(dout_rows * lanes), *dinner = scratch.take(dinner_rows * lanes);
      Acc* const turned = scratch.take(turned_rows * lanes);
      const auto tile_of = [&](const Acc* tile) {
        return Operand{tile, kDType<Acc>, run.lanes, 1, run.lanes, 0, all_paired};
      };
      // Adds left * turned, sums over the lanes, to the gradient of a weight.
      const auto add_product = [&](const Acc* left, int64_t N, int64_t K, Acc* gradient) {
        Product<Acc> product{tile_of(left), turned, nullptr,           gradient, N,
                             count,         K,      Activation::kNone, true,     panel};
        product.rounded = rounded, product.pairing.right = paired;
        run.multiply(product);
      };

      Transfer<Acc> from_x{x.at(image, 0, c), x.rows, count, false,    mix.norm.at(image, c),
                           nullptr,           {},     {},    in_paired};
      run.pack(from_x, in);
      const Acc* before_last = in;
      if (two) {
        Product<Acc> inside = first.product(in, count, panel, {paired, all_paired});
        inside.out = activated, inside.slopes = slopes, inside.rounded = paired;
        run.multiply(inside);
        before_last = activated;
      }
      const Rows dy_rows = dy.at(image, 0, c);
      const Rows factor = mix.factor.data ? mix.factor.at(image, 0, c) : Rows{};
      Transfer<Acc> from_dy{dy_rows, dy.rows, count, false, {}, nullptr, factor, {}, all_paired};
      run.pack(from_dy, dout);
      if (du.data) {
        const Transfer<Acc> to{du.at(image, 0, c), dy.rows, count, false, {}, nullptr, dy_rows, {}};
        last.apply(before_last, count, to, panel, {all_paired, false});
      }
      Transfer<Acc> to_dx{
          dx.data ? dx.at(image, 0, c) : Rows{}, x.rows, count, false, {}, nullptr, {}, {}};
      if (!two) to_dx.scale = mix.scale.at(c);
      if (into_last) {
        Product<Acc> back =
            last.backward(dout, count, panel, last_turned, {all_paired, two && all_paired});
        back.out = dinner, back.to = direct ? &to_dx : nullptr;
        if (two && !scaled) {
          back.activation = first.activation, back.slopes = slopes, back.backward = true;
        }
        run.multiply(back);
      }
      if (Acc* const to = sum(dscale, c); to != nullptr) {
        // dy * y summed over the tokens, without y: y is w * x + b.
        run.dot_rows(before_last, dinner, inner, blocks, to);
        if (const Acc* bias = last.bias.at(0); bias != nullptr) {
          const Operand left{bias, kDType<Acc>, last.N, 1, last.N};
          run.multiply({left, dout, nullptr, to, 1, last.N, count, Activation::kNone, true, panel});
        }
      }
      if (Acc* const to = sum(db); to != nullptr) {
        if (scaled) run.scale_lanes(dout, last.N, blocks, mix.scale.at(c));
        run.sum_lanes(dout, last.N, count, all_paired, to);
      }
      if (Acc* const to = sum(dw); to != nullptr) {
        from_dy.turned = true, from_dy.scale = mix.scale.at(c), from_dy.paired = paired;
        run.pack(from_dy, turned);
        add_product(before_last, inner, last.N, to);
      }
      if (!into_hidden) continue;
      const int64_t size = inner * blocks * run.lanes;
      if (scaled && (two || affine)) run.scale_lanes(dinner, inner, blocks, mix.scale.at(c));
      if (scaled && two) run.activate_backward(first.activation, slopes, size, dinner);
      if (Acc* const to = sum(db1)) run.sum_lanes(dinner, hidden, count, all_paired, to);
      if (Acc* const to = sum(dw1)) {
        from_x.turned = true, from_x.paired = paired;
        run.pack(from_x, turned);
        add_product(dinner, hidden, first.K, to);
      }
      if (!to_input) continue;
      if (two) {
        Product<Acc> back = first.backward(dinner, count, panel, first_turned, {all_paired, false});
        back.out = turned, back.to = affine ? nullptr : &to_dx;
        run.multiply(back);
      }
      if (affine) {
        affine_backward(mix, {image, c, count}, two ? turned : dinner, dx, sum(dnorm_weight, c),
                        sum(dnorm_bias, c));
      } else if (!two && !direct) {
        run.unpack(dinner, to_dx);
      }
    }
  });
}

template <class Acc>
void run_backward(const Mixture<Acc>& mix, const std::string& norm, const Wanted& wanted) {
  if (norm != "layer_norm" || !(wanted.x || wanted.norm_weight || wanted.norm_bias)) {
    return mix_backward(mix, norm == "affine", wanted);
  }
  Wanted behind_norm = wanted;
  behind_norm.x = torch::stable::new_empty(mix.x.x, mix.x.x.sizes(), kScalarType<Acc>);
  behind_norm.norm_weight = behind_norm.norm_bias = std::nullopt;
  mix_backward(mix, false, behind_norm);
  norm_backward(mix, Images::of(*behind_norm.x, Acc{}, "dnormed"), wanted);
}

void token_linear_backward(const Gradients& to, const Tensor& dy, const Tensor& given,
                           const std::string& norm, const OptionalTensor& norm_weight,
                           const OptionalTensor& norm_bias, double eps, const Tensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& scale) {
  STD_TORCH_CHECK(to.size() == 6, "6 gradients are wanted, got ", to.size());
  with_accumulator(given, [&](auto zero) {
    using Acc = decltype(zero);
    const Images x = Images::of(given, zero, "x");
    run_backward<Acc>({Images::of(dy, zero, "dy"),
                       x,
                       {x, norm, norm_weight, norm_bias, eps},
                       {{weight, bias}},
                       {scale, x.columns, "scale"},
                       {given}},
                      norm, {to[0], to[1], to[2], {{to[3], to[4]}}, to[5], {}});
  });
}

void token_mlp_backward(const Gradients& to, const Tensor& dy, const Tensor& given,
                        const std::string& norm, const OptionalTensor& norm_weight,
                        const OptionalTensor& norm_bias, double eps, const Tensor& w1,
                        const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                        const std::string& activation, const OptionalTensor& scale) {
  STD_TORCH_CHECK(to.size() == 8, "8 gradients are wanted, got ", to.size());
  with_accumulator(given, [&](auto zero) {
    using Acc = decltype(zero);
    const Images x = Images::of(given, zero, "x");
    run_backward<Acc>(
        {Images::of(dy, zero, "dy"),
         x,
         {x, norm, norm_weight, norm_bias, eps},
         {{w1, b1, activation_of(activation), "w1"}, {w2, b2, Activation::kNone, "w2"}},
         {scale, x.columns, "scale"},
         {given}},
        norm, {to[0], to[1], to[2], {{to[3], to[4]}, {to[5], to[6]}}, to[7], {}});
  });
}

void token_gate_backward(const Gradients& to, const Tensor& dy, const Tensor& u,
                         const Tensor& given, const std::string& norm,
                         const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                         double eps, const Tensor& weight, const OptionalTensor& bias) {
  STD_TORCH_CHECK(to.size() == 6, "6 gradients are wanted, got ", to.size());
  with_accumulator(given, [&](auto zero) {
    using Acc = decltype(zero);
    const Images x = Images::of(given, zero, "v");
    const Images from = Images::of(dy, zero, "dy");
    check_shape(u, {from.count, from.rows, from.columns}, "u");
    run_backward<Acc>({from,
                       x,
                       {x, norm, norm_weight, norm_bias, eps},
                       {{weight, bias}},
                       {{}, x.columns, "scale"},
                       Images::of(u, zero, "u")},
                      norm, {to[1], to[2], to[3], {{to[4], to[5]}}, {}, to[0]});
  });
}

}  // namespace
}  // namespace shiftmlp

STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cpu, CPU, m) {
  m.impl("token_linear_backward", TORCH_BOX(&shiftmlp::token_linear_backward));
  m.impl("token_mlp_backward", TORCH_BOX(&shiftmlp::token_mlp_backward));
  m.impl("token_gate_backward", TORCH_BOX(&shiftmlp::token_gate_backward));
}
