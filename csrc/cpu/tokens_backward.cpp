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

// The sums over a tile's lanes that make the gradients of w and b: dy * x^T and dy * 1; for w from
// factors `rounded` to bfloat16, as a layer on its own would have them, where that is faster.
template <class Acc>
void sum_gradients(const Acc* dy, int64_t N, const Acc* x, int64_t K, int64_t lanes, bool rounded,
                   Acc* dw, Acc* db, Acc* turned, Acc* panel) {
  const Engine<Acc>& run = engine<Acc>();
  if (db != nullptr) run.sum_lanes(dy, N, lanes, db);
  if (dw == nullptr) return;
  run.transpose(x, K, lanes, turned);
  const Operand left{dy, kDType<Acc>, run.lanes, 1, run.lanes};
  run.multiply(
      {left, turned, nullptr, dw, N, lanes, K, Activation::kNone, true, panel, nullptr, rounded});
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
  const int64_t turned_rows = ceil_div(std::max(first.K, inner), run.lanes) * run.lanes;
  const int64_t again = du.data ? last.N : 0;  // rows of the result, where it is made once more
  const int64_t rows = first.K + 2 * hidden + inner + last.N + again + turned_rows;
  // What is not at hand in a product may lie farther away.
  const Tiling<Acc> tiling(std::max({first.K, hidden, last.N}));
  const int64_t lanes = tiling.lanes;
  const int64_t most = std::max({first.K, first.N, last.K, last.N, lanes});
  const int64_t panel_size = run.scratch(most, most);
  const int64_t memory = rows * lanes + panel_size + 8 * 16;

  const int64_t tiles = ceil_div(x.columns, lanes);
  PartialSums<Acc> sums(x.count * tiles, 3 * lanes * (first.N * first.K + hidden * last.N));
  const LinearGradients none, &of_first = two ? wanted.layers.front() : none;
  const int64_t dw1 = sums.add(of_first.w, hidden, first.K);
  const int64_t db1 = sums.add(of_first.b, 1, hidden);
  const int64_t dw = sums.add(wanted.layers.back().w, last.N, last.K);
  const int64_t db = sums.add(wanted.layers.back().b, 1, last.N);
  const int64_t dscale = sums.add(wanted.scale, 1, x.columns);
  const int64_t dnorm_weight = sums.add(wanted.norm_weight, 1, x.columns);
  const int64_t dnorm_bias = sums.add(wanted.norm_bias, 1, x.columns);
  // How far back the wanted ones reach.
  const bool to_input = wanted.x || (affine && (wanted.norm_weight || wanted.norm_bias));
  const bool into_hidden = to_input || of_first.w || of_first.b;
  const bool into_last = into_hidden || wanted.scale;

  const bool rounded = in_bfloat16(x, dy);
  const auto piece = [&](Rows memory, int64_t rows, int64_t count, Norm<Acc> norm, Rows factor) {
    return Transfer<Acc>{memory, rows, count, false, norm, nullptr, factor, {}};
  };
  const Matrix first_turned = first.turned(two && to_input);
  const Matrix last_turned = last.turned(into_last);
  sums.run([&](int64_t begin, int64_t end, const auto& sum) {
    Scratch<Acc> scratch(memory);
    for (int64_t task = begin; task < end; ++task, scratch.reset()) {
      const int64_t image = task / tiles, c = task % tiles * lanes;
      const int64_t count = std::min(lanes, x.columns - c), blocks = tiling.blocks_of(count);
      Acc *in = scratch.take(first.K * lanes), *inside = scratch.take(hidden * lanes);
      Acc *activated = scratch.take(hidden * lanes), *panel = scratch.take(panel_size);
      Acc *out = scratch.take(again * lanes), *dout = scratch.take(last.N * lanes);
      Acc *dinner = scratch.take(inner * lanes), *turned = scratch.take(turned_rows * lanes);

      run.pack(piece(x.at(image, 0, c), x.rows, count, mix.norm.at(image, c), {}), in);
      const Acc* before_last = in;
      if (two) {
        first.apply(in, count, inside, panel, Activation::kNone);
        run.activate(first.activation, inside, hidden * blocks * run.lanes, activated, rounded);
        before_last = activated;
      }
      const Rows dy_rows = dy.at(image, 0, c);
      const Rows factor = mix.factor.data ? mix.factor.at(image, 0, c) : Rows{};
      run.pack(piece(dy_rows, dy.rows, count, {}, factor), dout);
      if (du.data) {
        last(before_last, count, out, panel);
        run.unpack(out, piece(du.at(image, 0, c), dy.rows, count, {}, dy_rows));
      }
      if (into_last) last.backward(dout, count, dinner, panel, last_turned);
      if (Acc* const to = sum(dscale, c); to != nullptr) {
        // dy * y summed over the tokens, without y: y is w * x + b.
        run.dot_rows(before_last, dinner, inner, blocks, to);
        if (const Acc* bias = last.bias.at(0); bias != nullptr) {
          const Operand left{bias, kDType<Acc>, last.N, 1, last.N};
          run.multiply({left, dout, nullptr, to, 1, last.N, count, Activation::kNone, true, panel});
        }
      }
      if (mix.scale.at(c) != nullptr) {
        run.scale_lanes(dout, last.N, blocks, mix.scale.at(c));
        if (into_hidden) run.scale_lanes(dinner, inner, blocks, mix.scale.at(c));
      }
      sum_gradients(dout, last.N, before_last, inner, count, rounded, sum(dw), sum(db), turned,
                    panel);
      if (!into_hidden) continue;
      if (two) {
        run.activate_backward(first.activation, inside, hidden * blocks * run.lanes, dinner);
        sum_gradients(dinner, hidden, in, first.K, count, rounded, sum(dw1), sum(db1), turned,
                      panel);
      }
      if (!to_input) continue;
      const auto into_dx = [&] { return piece(dx.at(image, 0, c), x.rows, count, {}, {}); };
      if (affine) {
        if (two) first.backward(dinner, count, turned, panel, first_turned);
        affine_backward(mix, {image, c, count}, two ? turned : dinner, dx, sum(dnorm_weight, c),
                        sum(dnorm_bias, c));
      } else if (two) {
        const Transfer<Acc> to = into_dx();
        first.backward(dinner, count, nullptr, panel, first_turned, &to);
      } else {
        run.unpack(dinner, into_dx());
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
