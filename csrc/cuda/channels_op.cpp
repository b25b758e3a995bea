// channel_mlp, shift_linear and shift_mlp: a product for every layer. Norms before it and shifts
// happen on the way in; the hidden goes through memory, and the result too before a norm of it. On
// sm_90a, where its product takes the tensors, the hidden is moved on its way out.
#include "channels.h"

namespace shiftmlp {
namespace {

// y = residual + scale * post(layer(in))
void launch_last(Call& call, const ChannelLayer& layer, int32_t positions, const Operand& in,
                 const Tensor& y, const NormArgs& post, const OptionalTensor& scale,
                 const OptionalTensor& residual, cudaStream_t stream) {
  const std::initializer_list<int64_t> sizes = {1, positions, layer.w.count};
  check_shape(y, sizes, "y");
  const Vector factor = call.vector(scale, layer.w.count, "scale");
  const Images rest = call.images(residual, sizes, "residual");
  if (post.kind != kNoNorm.kind) {
    const Images branch = layer.launch(call, positions, in, layer.activation, stream);
    const NormParams norm = norm_params_of(call, branch, post);
    return launch_norm(branch, norm, factor, rest, y.mutable_data_ptr(), check_result(y, "y"),
                       stream, post.eps);
  }
  Result to = layer.result(call, y, layer.activation);
  to.scale = factor, to.residual = rest.rows;
  multiply(layer.product(call, positions, in, to), stream);
}

void launch_mlp(Call& call, const Mlp& mlp, const Tensor& y, const OptionalTensor& scale,
                const OptionalTensor& residual, cudaStream_t stream) {
  const Normed in = mlp.launch_norm_of_x(call, norm_params_of(call, mlp.x, mlp.norm), stream);
  const Operand hidden = mlp.launch_hidden(call, in, nullptr, stream);
  launch_last(call, mlp.last, mlp.x.count, hidden, y, mlp.post, scale, residual, stream);
}

void channel_mlp(const Tensor& y, const Tensor& x, const std::string& norm,
                 const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                 const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                 const OptionalTensor& b2, const std::string& activation,
                 const std::string& post_norm, const OptionalTensor& post_norm_weight,
                 const OptionalTensor& post_norm_bias, double post_eps, const OptionalTensor& scale,
                 const OptionalTensor& residual) {
  Call call(x);
  const Mlp mlp(call, x, {norm, norm_weight, norm_bias, eps}, w1, b1, w2, b2, activation,
                {post_norm, post_norm_weight, post_norm_bias, post_eps});
  on_stream_of(x, [&](cudaStream_t stream) { launch_mlp(call, mlp, y, scale, residual, stream); });
}

void shift_mlp(const Tensor& y, const Tensor& x, int64_t H, int64_t W, const std::string& norm,
               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
               const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
               const OptionalTensor& b2, const std::string& shift, const std::string& activation,
               const std::string& post_norm, const OptionalTensor& post_norm_weight,
               const OptionalTensor& post_norm_bias, double post_eps, const OptionalTensor& scale,
               const OptionalTensor& residual) {
  Call call(x);
  const Mlp mlp(call, x, {norm, norm_weight, norm_bias, eps}, w1, b1, w2, b2, activation,
                {post_norm, post_norm_weight, post_norm_bias, post_eps}, ShiftArgs{H, W, shift});
  on_stream_of(x, [&](cudaStream_t stream) { launch_mlp(call, mlp, y, scale, residual, stream); });
}

void shift_linear(const Tensor& y, const Tensor& given, const Tensor& weight,
                  const OptionalTensor& bias, const std::string& shift,
                  const std::string& activation, const OptionalTensor& scale,
                  const OptionalTensor& residual) {
  Call call(given);
  const Images x = pixels_of(call, given);
  const ChannelLayer layer(call, weight, bias, x.columns, "weight", activation_of(activation));
  const MapShift map(given.size(-3), given.size(-2), shift, x.count, x.columns);
  on_stream_of(given, [&](cudaStream_t stream) {
    launch_last(call, layer, x.count, map.of(operand_of(x, false)), y, kNoNorm, scale, residual,
                stream);
  });
}

}  // namespace
}  // namespace shiftmlp

SHIFTMLP_ADAPTERS(m) {
  m.impl("channel_mlp", TORCH_BOX(&shiftmlp::channel_mlp));
  m.impl("shift_linear", TORCH_BOX(&shiftmlp::shift_linear));
  m.impl("shift_mlp", TORCH_BOX(&shiftmlp::shift_mlp));
}
