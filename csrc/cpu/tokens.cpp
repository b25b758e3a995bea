// token_linear, token_mlp and token_gate on the CPU: a tile of channels of one image at a time,
// read once, carried through every layer in cache and written once.
#include "tokens.h"

namespace shiftmlp {
namespace {

// y = residual + factor * scale * layers(norm(x)), over the tokens.
template <class Acc>
void mix(const Tensor& result, const Tensor& input, const NormArgs& norm_args,
         const std::vector<Linear<Acc>>& layers, const OptionalTensor& scale_args,
         const OptionalTensor& factor_args, const OptionalTensor& residual_args) {
  const Images y = Images::result(result, Acc{}, "y"),
               x = Images::of(input, Acc{}, factor_args ? "v" : "x");
  const Linear<Acc>&first = layers.front(), &last = layers.back();
  first.check_rows(x.rows);
  if (layers.size() > 1) last.check_rows(first.N);
  check_shape(result, {x.count, last.N, x.columns}, "y");
  const auto like_y = [&](const OptionalTensor& given, const char* name) {
    if (!given) return Images{result};
    check_shape(*given, {y.count, y.rows, y.columns}, name);
    return Images::of(*given, Acc{}, name);
  };
  const Images factor = like_y(factor_args, "u"), residual = like_y(residual_args, "residual");
  const Vector<Acc> scale(scale_args, x.columns, "scale");
  const TokenNorm<Acc> norm(x, norm_args.kind, norm_args.weight, norm_args.bias, norm_args.eps);

  const int64_t hidden = layers.size() > 1 ? first.N : 0;
  const bool paired = first.pairs() && last.pairs();
  const int64_t in_rows = tile_rows<Acc>(x.rows, paired);
  const int64_t inner_rows = tile_rows<Acc>(hidden, paired), rows = in_rows + inner_rows;
  const Tiling<Acc> tiling(rows, x.count * x.columns, paired);
  const int64_t panel = engine<Acc>().scratch(std::max(first.K, last.K), tiling.lanes);
  const int64_t memory = rows * tiling.lanes + panel + 4 * 16;
  const int64_t work = first.N * first.K + hidden * last.N;
  for_each_piece<Acc>(x.count, x.columns, tiling, memory, work, [&](Piece at, auto& scratch) {
    const int64_t lanes = tiling.lanes;
    Acc *in = scratch.take(in_rows * lanes), *inner = scratch.take(inner_rows * lanes);
    Acc* weights = scratch.take(panel);
    engine<Acc>().pack({x.at(at.image, 0, at.channel),
                        x.rows,
                        at.channels,
                        false,
                        norm.at(at.image, at.channel),
                        nullptr,
                        {},
                        {},
                        paired},
                       in);
    const auto rows_of = [&](const Images& images) {
      return images.data ? images.at(at.image, 0, at.channel) : Rows{};
    };
    if (hidden) first(in, at.channels, inner, weights, {paired, paired});
    last.apply(hidden ? inner : in, at.channels,
               {y.at(at.image, 0, at.channel),
                y.rows,
                at.channels,
                false,
                {},
                scale.at(at.channel),
                rows_of(factor),
                rows_of(residual)},
               weights, {paired, false});
  });
}

void token_linear(const Tensor& y, const Tensor& x, const std::string& norm,
                  const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                  const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                  const OptionalTensor& residual) {
  with_accumulator(y, [&](auto zero) {
    using Acc = decltype(zero);
    mix<Acc>(y, x, {norm, norm_weight, norm_bias, eps}, {{weight, bias}}, scale, {}, residual);
  });
}

void token_mlp(const Tensor& y, const Tensor& x, const std::string& norm,
               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
               const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
               const OptionalTensor& b2, const std::string& activation, const OptionalTensor& scale,
               const OptionalTensor& residual) {
  with_accumulator(y, [&](auto zero) {
    using Acc = decltype(zero);
    mix<Acc>(y, x, {norm, norm_weight, norm_bias, eps},
             {{w1, b1, activation_of(activation), "w1"}, {w2, b2, Activation::kNone, "w2"}}, scale,
             {}, residual);
  });
}

void token_gate(const Tensor& y, const Tensor& u, const Tensor& v, const std::string& norm,
                const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                const Tensor& weight, const OptionalTensor& bias) {
  with_accumulator(y, [&](auto zero) {
    using Acc = decltype(zero);
    mix<Acc>(y, v, {norm, norm_weight, norm_bias, eps}, {{weight, bias}}, {}, u, {});
  });
}

}  // namespace
}  // namespace shiftmlp

STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cpu, CPU, m) {
  m.impl("token_linear", TORCH_BOX(&shiftmlp::token_linear));
  m.impl("token_mlp", TORCH_BOX(&shiftmlp::token_mlp));
  m.impl("token_gate", TORCH_BOX(&shiftmlp::token_gate));
}
