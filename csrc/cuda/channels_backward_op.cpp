// The gradients of channel_mlp, shift_linear and shift_mlp. The forward keeps nothing: the hidden,
// and the result where its norm's or factor's gradient is wanted, are computed once more.
#include "channels.h"
#include "norm_in_product.h"

namespace shiftmlp {
namespace {

// The gradient of a branch from that of scale * post(branch). Where there is no norm the branch may
// be anything but for dscale.
Images launch_last_backward(Call& call, const Images& dy, const Images& branch,
                            const NormArgs& post, const Vector& scale,
                            const OptionalTensor& dweight, const OptionalTensor& dbias,
                            const OptionalTensor& dscale, const OptionalTensor& db,
                            cudaStream_t stream) {
  NormBackward p{};
  p.dy = dy, p.x = branch, p.scale = scale;
  if (post.kind == kNone) {  // a bias that all is added to, like that of a norm
    if (db || dscale) launch_norm_gradients(call, p, {}, {}, db, dscale, stream);
    return launch_scaled(call, dy, scale, stream);
  }
  p.norm = norm_params_of(call, branch, post);
  launch_moments_of(branch, p.norm, post.eps, stream);
  const Tensor dbranch = call.empty({1, dy.count, dy.columns}, call.dtype());
  launch_norm_gradients(call, p, dbranch, dweight, dbias, dscale, stream);
  const Images incoming = call.images(dbranch, "the gradient of the result");
  launch_sum_over_rows(call, incoming, {}, db, stream);
  return incoming;
}

// In the order of the op's tensors: x, two of the norm, w1, b1, w2, b2, two of the norm after it
// and scale.
void launch_mlp_backward(Call& call, const Mlp& mlp, const Gradients& to, const Tensor& dy_given,
                         const OptionalTensor& scale, cudaStream_t stream) {
  STD_TORCH_CHECK(to.size() == 10, "10 gradients are wanted, got ", to.size());
  const auto& [x, norm_args, post, first, last, shift] = mlp;
  const int32_t positions = x.count;
  const Images dy = call.images(dy_given, {1, positions, last.w.count}, "dy");
  const NormParams norm = norm_params_of(call, x, norm_args);
  const Normed in = mlp.launch_norm_of_x_backward(call, norm, stream);
  const Tensor memory = call.empty({1, positions, first.w.count}, call.dtype());
  const Images inner = call.images(memory, "the hidden");  // before the activation
  Operand hidden = mlp.launch_hidden(call, in, memory.mutable_data_ptr(), stream);
  Images branch = dy;
  if (to[9] || post.kind != kNone) {
    branch = last.launch(call, positions, hidden, Activation::kNone, stream);
  }
  const Images dlast =
      launch_last_backward(call, dy, branch, post, call.vector(scale, dy.columns, "scale"), to[7],
                           to[8], to[9], to[6], stream);
  hidden.sums_rows = true;
  launch_sum_of_products(call, last.gradient(call, positions, operand_of(dlast, true), hidden),
                         to[5], stream);
  const bool wants_normed = to[0] || to[1] || to[2];
  if (!wants_normed && !to[3] && !to[4]) return;

  const Tensor gradient = call.empty({1, positions, first.w.count}, call.dtype());
  const Images dinner = call.images(gradient, "the gradient of the hidden");
  if (shift) {
    Call temporary(gradient);
    const Tensor moved = temporary.empty({1, positions, first.w.count}, call.dtype());
    multiply(last.backward(call, positions, operand_of(dlast, false), call.result(moved)), stream);
    shift->launch_backward(moved, gradient, stream);
    launch_activation_backward(dinner, {}, inner, first.activation, gradient.mutable_data_ptr(),
                               call.dtype(), stream);
  } else {
    Result result = call.result(gradient);
    result.activation = first.activation, result.slope_of = inner.rows;
    multiply(last.backward(call, positions, operand_of(dlast, false), result), stream);
  }
  const Operand dsums = operand_of(dinner, true);
  launch_sum_of_products(call, first.gradient(call, positions, dsums, in.operand(true)), to[3],
                         stream);
  launch_sum_over_rows(call, dinner, {}, to[4], stream);

  if (!wants_normed) return;
  const bool normed = norm_args.kind != kNone;
  const auto product = [&](const Tensor& to) {
    check_shape(to, {1, positions, x.columns}, "the gradient of x");
    return first.backward(call, positions, operand_of(dinner, false), call.result(to));
  };
  // Wanted or not: which kernel runs must not depend on that, or the bits of other gradients would.
  const Tensor dx = to[0] ? *to[0] : call.empty({1, positions, x.columns}, call.dtype());
  if (!normed) return multiply(product(dx), stream);
  if (fits_sm90(product(dx), {}, adjoint_of(x, norm))) {
    return launch_norm_in_product(call, product(dx), x, norm, to[1], to[2], stream);
  }
  const Tensor dnormed = call.empty({1, positions, x.columns}, call.dtype());
  multiply(product(dnormed), stream);
  NormBackward p{};
  p.dy = call.images(dnormed, "the gradient of the norm"), p.x = x, p.norm = norm;
  launch_norm_gradients(call, p, to[0], to[1], to[2], {}, stream);
}

void channel_mlp_backward(const Gradients& to, const Tensor& dy, const Tensor& x,
                          const std::string& norm, const OptionalTensor& norm_weight,
                          const OptionalTensor& norm_bias, double eps, const Tensor& w1,
                          const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                          const std::string& activation, const std::string& post_norm,
                          const OptionalTensor& post_norm_weight,
                          const OptionalTensor& post_norm_bias, double post_eps,
                          const OptionalTensor& scale) {
  Call call(x);
  const Mlp mlp(call, x, {norm, norm_weight, norm_bias, eps}, w1, b1, w2, b2, activation,
                {post_norm, post_norm_weight, post_norm_bias, post_eps});
  on_stream_of(x,
               [&](cudaStream_t stream) { launch_mlp_backward(call, mlp, to, dy, scale, stream); });
}

void shift_mlp_backward(const Gradients& to, const Tensor& dy, const Tensor& x, int64_t H,
                        int64_t W, const std::string& norm, const OptionalTensor& norm_weight,
                        const OptionalTensor& norm_bias, double eps, const Tensor& w1,
                        const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                        const std::string& shift, const std::string& activation,
                        const std::string& post_norm, const OptionalTensor& post_norm_weight,
                        const OptionalTensor& post_norm_bias, double post_eps,
                        const OptionalTensor& scale) {
  Call call(x);
  const Mlp mlp(call, x, {norm, norm_weight, norm_bias, eps}, w1, b1, w2, b2, activation,
                {post_norm, post_norm_weight, post_norm_bias, post_eps}, ShiftArgs{H, W, shift});
  on_stream_of(x,
               [&](cudaStream_t stream) { launch_mlp_backward(call, mlp, to, dy, scale, stream); });
}

void shift_linear_backward(const Gradients& to, const Tensor& dy_given, const Tensor& given,
                           const Tensor& weight, const OptionalTensor& bias,
                           const std::string& shift, const std::string& activation,
                           const OptionalTensor& scale_given) {
  STD_TORCH_CHECK(to.size() == 4, "4 gradients are wanted, got ", to.size());
  Call call(given);
  const Images x = pixels_of(call, given);
  const ChannelLayer layer(call, weight, bias, x.columns, "weight", activation_of(activation));
  const MapShift map(given.size(-3), given.size(-2), shift, x.count, x.columns);
  const int32_t positions = x.count;
  const Images dy = call.images(dy_given, {1, positions, layer.w.count}, "dy");
  const Vector scale = call.vector(scale_given, dy.columns, "scale");
  const bool activates = layer.activation != Activation::kNone;
  on_stream_of(given, [&](cudaStream_t stream) {
    const auto again = [&](Activation activation) {
      return layer.launch(call, positions, map.of(operand_of(x, false)), activation, stream);
    };
    const Vector scale_here = activates ? Vector{} : scale;
    Images dsums =
        launch_last_backward(call, dy, to[3] ? again(layer.activation) : dy, kNoNorm, scale_here,
                             {}, {}, to[3], activates ? kNothing : to[2], stream);
    if (activates) {
      const Images inner = again(Activation::kNone);
      const Tensor gradient = call.empty({1, positions, dy.columns}, call.dtype());
      launch_activation_backward(dy, scale, inner, layer.activation, gradient.mutable_data_ptr(),
                                 call.dtype(), stream);
      dsums = call.images(gradient, "the gradient of the sums");
      launch_sum_over_rows(call, dsums, {}, to[2], stream);
    }
    if (to[1]) {
      const auto gradient = [&](const Operand& in) {
        return layer.gradient(call, positions, operand_of(dsums, true), in);
      };
      Product product = gradient(map.of(operand_of(x, true)));
      if (fits_sm90(in_parts(gradient({{nullptr, 0, x.columns}, true})))) {
        const Tensor moved = call.empty({1, positions, x.columns}, call.dtype());
        map.launch(x, moved, stream);
        product = gradient(operand_of(call.images(moved, "the shift of x"), true));
      }
      launch_sum_of_products(call, product, to[1], stream);
    }
    if (!to[0]) return;
    check_shape(*to[0], {1, positions, x.columns}, "the gradient of x");
    const Tensor moved = call.empty({1, positions, x.columns}, call.dtype());
    multiply(layer.backward(call, positions, operand_of(dsums, false), call.result(moved)), stream);
    map.launch_backward(moved, *to[0], stream);
  });
}

}  // namespace
}  // namespace shiftmlp

SHIFTMLP_ADAPTERS(m) {
  m.impl("channel_mlp_backward", TORCH_BOX(&shiftmlp::channel_mlp_backward));
  m.impl("shift_linear_backward", TORCH_BOX(&shiftmlp::shift_linear_backward));
  m.impl("shift_mlp_backward", TORCH_BOX(&shiftmlp::shift_mlp_backward));
}
