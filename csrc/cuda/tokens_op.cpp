// token_linear, token_mlp and token_gate: a product for every layer. What stands before and after
// it happens on the way in and out, so that only the hidden of token_mlp goes through memory.
#include "tokens.h"

namespace shiftmlp {
namespace {

// y = residual + factor * scale * (w * in + bias)
void launch_last(Call& call, const TokenLayer& last, const Images& x, const Operand& in,
                 const Tensor& y, const OptionalTensor& scale, const OptionalTensor& factor,
                 const OptionalTensor& residual, cudaStream_t stream) {
  const std::initializer_list<int64_t> sizes = {x.images, last.w.count, x.columns};
  check_shape(y, sizes, "y");
  Result result = call.result(y);
  result.row_bias = last.bias;
  result.scale = call.vector(scale, x.columns, "scale");
  result.factor = call.images(factor, sizes, "u").rows;
  result.residual = call.images(residual, sizes, "residual").rows;
  launch_product(last.product(call, x, in, result), stream);
}

void mix(const Tensor& y, const Tensor& given, const NormArgs& norm, const Tensor& weight,
         const OptionalTensor& bias, const OptionalTensor& scale, const OptionalTensor& factor,
         const OptionalTensor& residual) {
  const char* const name = factor ? "v" : "x";
  Call call(given, name);
  const Images x = call.images(given, name);
  const TokenLayer layer(call, weight, bias, x.count);
  on_stream_of(given, [&](cudaStream_t stream) {
    const Operand in = operand_of(x, true, launch_moments_of(call, x, norm, stream));
    launch_last(call, layer, x, in, y, scale, factor, residual, stream);
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
  on_stream_of(given, [&](cudaStream_t stream) {
    const NormParams params =
        launch_moments_of(call, x, {norm, norm_weight, norm_bias, eps}, stream);
    const Tensor hidden = call.empty({x.images, first.w.count, x.columns}, call.dtype());
    Result to = call.result(hidden);
    to.row_bias = first.bias, to.activation = first.activation;
    launch_product(first.product(call, x, operand_of(x, true, params), to), stream);
    const Images inner = call.images(hidden, "the hidden");
    launch_last(call, last, inner, operand_of(inner, true), y, scale, {}, residual, stream);
  });
}

}  // namespace
}  // namespace shiftmlp

SHIFTMLP_ADAPTERS(m) {
  m.impl("token_linear", TORCH_BOX(&shiftmlp::token_linear));
  m.impl("token_mlp", TORCH_BOX(&shiftmlp::token_mlp));
  m.impl("token_gate", TORCH_BOX(&shiftmlp::token_gate));
}
