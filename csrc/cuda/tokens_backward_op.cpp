// The gradients of token_linear, token_mlp and token_gate. The forward keeps nothing: the hidden,
// and where its factor's gradient is wanted the result, are computed once more.
#include "norm_in_product.h"
#include "tokens.h"
#include "tokens_sm90.h"

namespace shiftmlp {
namespace {

struct LayerGradients {
  OptionalTensor w, b;
};

struct Wanted {
  OptionalTensor x, norm_weight, norm_bias;
  std::vector<LayerGradients> layers;
  OptionalTensor scale, factor;
};

// Of y = factor * scale * layers(norm(x)).
struct Mixture {
  Images dy, x;
  NormArgs norm_args;
  std::vector<TokenLayer> layers;
  Vector scale;
  Images factor;
};

// Where a kernel leaves dx, wanted or not: which kernel runs must not depend on that, or the bits
// of other gradients would.
Tensor dx_of(Call& call, const Images& x, const Wanted& wanted) {
  const std::initializer_list<int64_t> sizes = {x.images, x.count, x.columns};
  const Tensor dx = wanted.x ? *wanted.x : call.empty(sizes, call.dtype());
  check_shape(dx, sizes, "the gradient of x");
  return dx;
}

// What token_mlp's backward on sm_90a leaves for the gradients of the weights.
struct Inside {
  Images hidden, dhidden;
};

// dx, the norm's gradients and b1's, where that kernel takes the tensors.
std::optional<Inside> launch_inside(Call& call, const Mixture& mix, const Wanted& wanted,
                                    const NormParams& norm, const Normed& in, cudaStream_t stream) {
  const Images &x = mix.x, &dy = mix.dy;
  if (in.norm.mean || in.norm.weight.data || in.norm.bias.data) return {};
  const TokenLayer &first = mix.layers[0], &last = mix.layers[1];
  const Rows &w1 = first.w.rows, &w2 = last.w.rows;
  TokenMlpBackwardSm90Params p{};
  p.dtype = call.dtype(), p.x = x.rows, p.mean = norm.mean, p.rstd = norm.rstd;
  p.norm_weight = norm.weight, p.norm_bias = norm.bias, p.scale = mix.scale;
  p.B = x.images, p.S = x.count, p.T = dy.count, p.C = x.columns, p.D = first.w.count;
  p.w1 = w1.data, p.w1_stride = w1.stride, p.b1 = first.bias;
  p.w2 = w2.data, p.w2_stride = w2.stride, p.activation = first.activation;
  p.dy = dy.rows, p.normed = in.rows.rows;
  const auto memory_for = [&](int32_t rows) {
    return call.empty({x.images, rows, x.columns}, call.dtype());
  };
  const Result to = call.result(dx_of(call, x, wanted), "the gradient of x");
  p.dx = to.data;
  if (to.dtype != call.dtype() || !fits_sm90(p)) return {};

  const Tensor hidden = memory_for(p.D), dhidden = memory_for(p.D);
  p.hidden = hidden.mutable_data_ptr(), p.dhidden = dhidden.mutable_data_ptr();
  p.workspace = call.floats(ceil_div(workspace_bytes(p), sizeof(float)));
  const RowSums weight(call, wanted.norm_weight, p.B, 1, p.C),
      bias(call, wanted.norm_bias, p.B, 1, p.C),
      b1(call, wanted.layers[0].b, p.B, parts_of_b1(p.C), p.D);
  p.dnorm_weight = weight.data, p.dnorm_bias = bias.data, p.db1 = b1.data;
  launch_token_mlp_backward_sm90(p, stream);
  for (const RowSums* of : {&weight, &bias, &b1}) of->launch_total(call, stream);
  return Inside{call.images(hidden, "the hidden"),
                call.images(dhidden, "the gradient of the hidden")};
}

// dx and the norm's gradients by one product, where that takes the tensors, from the gradient of
// the first layer's sums.
bool launch_with_norm(Call& call, const Mixture& mix, const Wanted& wanted, const NormParams& norm,
                      const Operand& dsums, cudaStream_t stream) {
  const Images& x = mix.x;
  const TokenLayer& first = mix.layers.front();
  const Result dx = call.result(dx_of(call, x, wanted), "the gradient of x");
  if (!fits_sm90(first.backward(call, x, dsums, dx, nullptr), {}, adjoint_of(x, norm))) {
    return false;
  }
  const Product p = first.backward(call, x, dsums, dx, first.transpose(call));
  launch_norm_in_product(call, p, x, norm, wanted.norm_weight, wanted.norm_bias, stream);
  return true;
}

void launch_backward(Call& call, const Mixture& mix, const Wanted& wanted, cudaStream_t stream) {
  const Images &dy = mix.dy, &x = mix.x;
  const TokenLayer &first = mix.layers.front(), &last = mix.layers.back();
  const LayerGradients &of_first = wanted.layers.front(), &of_last = wanted.layers.back();
  const bool two = mix.layers.size() > 1, normed = mix.norm_args.kind != "none";
  const bool needs_normed = wanted.x || (normed && (wanted.norm_weight || wanted.norm_bias));
  const bool needs_hidden = two && (needs_normed || of_first.w || of_first.b);
  const NormParams norm = norm_params_of(call, x, mix.norm_args);

  const std::initializer_list<int64_t> like_x = {x.images, x.count, x.columns},
                                       like_y = {dy.images, dy.count, dy.columns},
                                       inside = {x.images, first.w.count, x.columns};
  const Result like_inside{nullptr, call.dtype(), int64_t{first.w.count} * x.columns, x.columns};
  const Normed in = launch_norm_of(
      call, x, norm, mix.norm_args.eps, true, stream,
      [&](const Operand& dense) { return first.product(call, x, dense, like_inside); });
  // Whatever is wanted of it, so that no gradient depends on which others are.
  const bool needs_inside = two && (needs_hidden || of_last.w || wanted.scale);
  const std::optional<Inside> fused =
      needs_inside ? launch_inside(call, mix, wanted, norm, in, stream) : std::nullopt;
  Images inner{}, hidden{};  // of the first layer, before the activation and after it
  if (fused) {
    hidden = fused->hidden;
  } else if (needs_inside) {
    const Tensor before = call.empty(inside, call.dtype()),
                 after = call.empty(inside, call.dtype());
    Result to = call.result(after);
    to.row_bias = first.bias, to.activation = first.activation;
    to.inner = before.mutable_data_ptr();
    multiply(first.product(call, x, in.operand(true), to), stream);
    inner = call.images(before, "the hidden"), hidden = call.images(after, "the hidden");
  }
  const auto into_last = [&](bool sums_rows) {
    return two ? operand_of(hidden, sums_rows) : in.operand(sums_rows);
  };
  const auto again = [&](const Tensor& y, const Rows& factor) {
    check_shape(y, like_y, "the gradient of u");
    Result to = call.result(y, "the gradient of u");
    to.row_bias = last.bias, to.factor = factor;
    multiply(last.product(call, x, into_last(true), to), stream);
  };
  if (wanted.factor) again(*wanted.factor, dy.rows);
  if (wanted.scale) {
    const Tensor y = call.empty(like_y, call.dtype());
    again(y, {});
    launch_sum_over_rows(call, dy, call.images(y, "y"), wanted.scale, stream);
  }

  // Through memory whichever kernel takes it, so that results do not tell of the way.
  const bool needs_scaled = of_last.w || (needs_normed && !two);
  const Images scaled = needs_scaled ? launch_scaled(call, dy, mix.scale, stream) : dy;
  if (of_last.w) {
    Operand dsums = operand_of(scaled, false);
    dsums.factor = mix.factor.rows;
    launch_sum_of_products(call, last.gradient(call, dy, dsums, into_last(false)), of_last.w,
                           stream);
  }
  launch_sum_over_columns(call, dy, mix.scale, mix.factor, of_last.b, stream);

  Images dhidden{};
  if (fused) {
    dhidden = fused->dhidden;
  } else if (needs_hidden) {
    const Tensor gradient = call.empty(inside, call.dtype());
    Result to = call.result(gradient);
    to.activation = first.activation, to.slope_of = inner.rows;
    to.scale = mix.scale;
    multiply(last.backward(call, dy, operand_of(dy, true), to), stream);
    dhidden = call.images(gradient, "the gradient of the hidden");
  }
  if (needs_hidden) {
    const Operand dinner = operand_of(dhidden, false);
    launch_sum_of_products(call, first.gradient(call, dhidden, dinner, in.operand(false)),
                           of_first.w, stream);
    if (!fused) launch_sum_over_columns(call, dhidden, {}, {}, of_first.b, stream);
  }

  if (!needs_normed || fused) return;
  Operand dsums = operand_of(two ? dhidden : scaled, true);
  dsums.factor = mix.factor.rows;
  if (normed && launch_with_norm(call, mix, wanted, norm, dsums, stream)) return;
  const Tensor dnormed = normed ? call.empty(like_x, call.dtype()) : *wanted.x;
  check_shape(dnormed, like_x, "the gradient of x");
  const Result to = call.result(dnormed, "the gradient of x");
  multiply(first.backward(call, x, dsums, to), stream);
  if (!normed) return;
  NormBackward p{};
  p.dy = call.images(dnormed, "the gradient of the norm"), p.x = x, p.norm = norm;
  launch_norm_gradients(call, p, wanted.x, wanted.norm_weight, wanted.norm_bias, {}, stream);
}

void token_linear_backward(const Gradients& to, const Tensor& dy, const Tensor& given,
                           const std::string& norm, const OptionalTensor& norm_weight,
                           const OptionalTensor& norm_bias, double eps, const Tensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& scale) {
  STD_TORCH_CHECK(to.size() == 6, "6 gradients are wanted, got ", to.size());
  Call call(given);
  const Images x = call.images(given, "x");
  const TokenLayer layer(call, aligned(weight), bias, x.count);
  const Mixture mix{call.images(dy, {x.images, layer.w.count, x.columns}, "dy"),
                    x,
                    {norm, norm_weight, norm_bias, eps},
                    {layer},
                    call.vector(scale, x.columns, "scale"),
                    {}};
  on_stream_of(given, [&](cudaStream_t stream) {
    launch_backward(call, mix, {to[0], to[1], to[2], {{to[3], to[4]}}, to[5], {}}, stream);
  });
}

void token_mlp_backward(const Gradients& to, const Tensor& dy, const Tensor& given,
                        const std::string& norm, const OptionalTensor& norm_weight,
                        const OptionalTensor& norm_bias, double eps, const Tensor& w1,
                        const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                        const std::string& activation, const OptionalTensor& scale) {
  STD_TORCH_CHECK(to.size() == 8, "8 gradients are wanted, got ", to.size());
  Call call(given);
  const Images x = call.images(given, "x");
  const TokenLayer first(call, aligned(w1), b1, x.count, "w1", activation_of(activation));
  const TokenLayer last(call, aligned(w2), b2, first.w.count, "w2");
  const Mixture mix{call.images(dy, {x.images, last.w.count, x.columns}, "dy"),
                    x,
                    {norm, norm_weight, norm_bias, eps},
                    {first, last},
                    call.vector(scale, x.columns, "scale"),
                    {}};
  on_stream_of(given, [&](cudaStream_t stream) {
    launch_backward(call, mix, {to[0], to[1], to[2], {{to[3], to[4]}, {to[5], to[6]}}, to[7], {}},
                    stream);
  });
}

void token_gate_backward(const Gradients& to, const Tensor& dy, const Tensor& u,
                         const Tensor& given, const std::string& norm,
                         const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                         double eps, const Tensor& weight, const OptionalTensor& bias) {
  STD_TORCH_CHECK(to.size() == 6, "6 gradients are wanted, got ", to.size());
  Call call(given, "v");
  const Images x = call.images(given, "v");
  const TokenLayer layer(call, aligned(weight), bias, x.count);
  const std::initializer_list<int64_t> sizes = {x.images, layer.w.count, x.columns};
  const Mixture mix{
      call.images(dy, sizes, "dy"), x, {norm, norm_weight, norm_bias, eps}, {layer}, {},
      call.images(u, sizes, "u")};
  on_stream_of(given, [&](cudaStream_t stream) {
    launch_backward(call, mix, {to[1], to[2], to[3], {{to[4], to[5]}}, {}, to[0]}, stream);
  });
}

}  // namespace
}  // namespace shiftmlp

SHIFTMLP_ADAPTERS(m) {
  m.impl("token_linear_backward", TORCH_BOX(&shiftmlp::token_linear_backward));
  m.impl("token_mlp_backward", TORCH_BOX(&shiftmlp::token_mlp_backward));
  m.impl("token_gate_backward", TORCH_BOX(&shiftmlp::token_gate_backward));
}
