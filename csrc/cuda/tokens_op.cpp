// token_linear, token_mlp and token_gate: a product for every layer. What stands before and after
// it happens on the way in and out, so that only the hidden of token_mlp goes through memory. On
// sm_90a token_linear and token_mlp are a kernel each, where it takes their tensors.
#include "tokens.h"
#include "tokens_sm90.h"

namespace shiftmlp {
namespace {

// y = residual + factor * scale * (w * in + bias)
Result result_of(Call& call, const TokenLayer& last, const Images& x, const Tensor& y,
                 const OptionalTensor& scale, const OptionalTensor& factor,
                 const OptionalTensor& residual) {
  const std::initializer_list<int64_t> sizes = {x.images, last.w.count, x.columns};
  check_shape(y, sizes, "y");
  Result result = call.result(y);
  result.row_bias = last.bias;
  result.scale = call.vector(scale, x.columns, "scale");
  result.factor = call.images(factor, sizes, "u").rows;
  result.residual = call.images(residual, sizes, "residual").rows;
  return result;
}

// What the kernels for sm_90a have in common; nothing for them unless y is of the operands' dtype.
std::optional<TokensSm90> tokens_of(const Call& call, const TokenLayer& last, const Images& x,
                                    const NormParams& norm, const Result& y) {
  if (y.dtype != call.dtype() || y.factor.data) return {};
  return TokensSm90{call.dtype(), x.rows, norm.mean, norm.rstd, norm.weight,  norm.bias, y.scale,
                    y.residual,   y.data, x.images,  x.count,   last.w.count, x.columns};
}

void mix(const Tensor& y, const Tensor& given, const NormArgs& norm, const Tensor& weight,
         const OptionalTensor& bias, const OptionalTensor& scale, const OptionalTensor& factor,
         const OptionalTensor& residual) {
  const char* const name = factor ? "v" : "x";
  Call call(given, name);
  const Images x = call.images(given, name);
  const TokenLayer layer(call, weight, bias, x.count);
  const Result result = result_of(call, layer, x, y, scale, factor, residual);
  on_stream_of(given, [&](cudaStream_t stream) {
    const NormParams params = norm_params_of(call, x, norm);
    if (const auto tokens = tokens_of(call, layer, x, params, result)) {
      const Rows& w = layer.w.rows;
      const TokenLinearSm90Params p{*tokens, w.data, w.stride, layer.bias};
      if (fits_sm90(p)) {
        launch_moments_of(x, params, norm.eps, stream);
        return launch_token_linear_sm90(p, stream);
      }
    }
    const auto product = [&](const Operand& in) { return layer.product(call, x, in, result); };
    const Normed in = launch_norm_of(call, x, params, norm.eps, true, stream, product);
    multiply(product(in.operand(true)), stream);
  });
}

void token_linear(const Tensor& y, const Tensor& x, const std::string& norm,
                  const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                  const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                  const OptionalTensor& residual) {
  mix(y, x, {norm, norm_weight, norm_bias, eps}, weight, bias, scale, {}, residual);
}

void token_gate(const Tensor& y, const Tensor& u, const Tensor& v, const std::string& norm,
                const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                const Tensor& weight, const OptionalTensor& bias) {
  mix(y, v, {norm, norm_weight, norm_bias, eps}, weight, bias, {}, u, {});
}

void token_mlp(const Tensor& y, const Tensor& given, const std::string& norm,
               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
               const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
               const OptionalTensor& b2, const std::string& activation, const OptionalTensor& scale,
               const OptionalTensor& residual) {
  Call call(given);
  const Images x = call.images(given, "x");
  const TokenLayer first(call, w1, b1, x.count, "w1", activation_of(activation));
  const TokenLayer last(call, w2, b2, first.w.count, "w2");
  const Result result = result_of(call, last, x, y, scale, {}, residual);
  on_stream_of(given, [&](cudaStream_t stream) {
    const NormParams params = norm_params_of(call, x, {norm, norm_weight, norm_bias, eps});
    if (const auto tokens = tokens_of(call, last, x, params, result)) {
      const Rows &rows1 = first.w.rows, &rows2 = last.w.rows;
      TokenMlpSm90Params p{*tokens,      rows1.data, rows1.stride,     first.bias,    rows2.data,
                           rows2.stride, last.bias,  first.activation, first.w.count, nullptr};
      if (fits_sm90(p)) {
        p.workspace = call.floats(ceil_div(workspace_bytes(p), sizeof(float)));
        launch_moments_of(x, params, eps, stream);
        return launch_token_mlp_sm90(p, stream);
      }
    }
    const Tensor hidden = call.empty({x.images, first.w.count, x.columns}, call.dtype());
    Result to = call.result(hidden);
    to.row_bias = first.bias, to.activation = first.activation;
    const auto product = [&](const Operand& in) { return first.product(call, x, in, to); };
    const Normed in = launch_norm_of(call, x, params, eps, true, stream, product);
    multiply(product(in.operand(true)), stream);
    const Images inner = call.images(hidden, "the hidden");
    multiply(last.product(call, inner, operand_of(inner, true), result), stream);
  });
}

}  // namespace
}  // namespace shiftmlp

SHIFTMLP_ADAPTERS(m) {
  m.impl("token_linear", TORCH_BOX(&shiftmlp::token_linear));
  m.impl("token_mlp", TORCH_BOX(&shiftmlp::token_mlp));
  m.impl("token_gate", TORCH_BOX(&shiftmlp::token_gate));
}
