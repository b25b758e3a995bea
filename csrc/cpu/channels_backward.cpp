// The gradients of channel_mlp, shift_linear and shift_mlp on the CPU. The hidden map is made once
// more, so that the forward keeps nothing.
#include "maps.h"
#include "spatial_shift.h"

namespace shiftmlp {
namespace {

const std::string kNone = "none";
const OptionalTensor kNothing;
const NormArgs kNoNorm{kNone, kNothing, kNothing, 0};

struct MapShift {
  int64_t H, W;
  const std::string& spec;

  using Function = Tensor (*)(const Tensor&, const std::string&);

  template <class Acc>
  Images apply(Function function, const Images& x) const {
    STD_TORCH_CHECK(0 < H && H <= kMaxSide && 0 < W && W <= kMaxSide, "H and W must be 1 to ",
                    kMaxSide);
    const int64_t pixels = H * W;
    STD_TORCH_CHECK(x.rows % pixels == 0, "H and W do not fit x");
    const Tensor map = torch::stable::reshape(x.x, {x.rows / pixels, H, W, x.columns});
    return map_of<Acc>(function(map, spec), x.rows, x.columns);
  }
};

// Through scale * post_norm(branch): the gradient of the branch, and where wanted the parameters'.
template <class Acc>
Images finish_backward(const Images& dy, const Images& branch, bool rounded, const NormArgs& post,
                       const OptionalTensor& scale_arg, const OptionalTensor& dweight,
                       const OptionalTensor& dbias, const OptionalTensor& dscale) {
  const Vector<Acc> scale(scale_arg, dy.columns, "scale");
  const PositionNorm<Acc> norm(branch, post);
  sum_positions(branch, norm, &dy, dscale);
  if (!scale_arg && post.kind == kNone) return dy;
  const Images dbranch = new_map<Acc>(dy, dy.columns, rounded);
  const Engine<Acc>& run = engine<Acc>();
  constexpr int64_t kStrip = 64;
  parallel(ceil_div(dy.rows, kStrip), kStrip * dy.columns, [&](int64_t begin, int64_t end) {
    const int64_t padded = ceil_div(dy.columns, run.lanes) * run.lanes;
    Scratch<Acc> scratch(kStrip * padded + 16);
    Acc* const tile = scratch.take(kStrip * padded);
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t position = strip * kStrip, count = std::min(kStrip, dy.rows - position);
      const auto rows = [&](const Images& map, const Acc* factor) {
        return Transfer<Acc>{map.at(0, position, 0), count, dy.columns, false, {}, factor, {}, {}};
      };
      run.pack(rows(dy, scale.at(0)), tile);
      run.unpack(tile, rows(dbranch, nullptr));
    }
  });
  if (post.kind != kNone) norm_gradients(dbranch, branch, norm, &dbranch, dweight, dbias);
  return dbranch;
}

template <class Acc>
void linear_gradients(const Images& dy, const Images& x, const PositionNorm<Acc>& norm,
                      bool rounded, const OptionalTensor& dw, const OptionalTensor& db) {
  if (dw) weight_gradient(dy, x, norm, rounded, *dw);
  sum_positions(dy, PositionNorm<Acc>(dy, kNoNorm), nullptr, db);
}

template <class Acc>
void mlp_backward(const Gradients& to, const Tensor& dy_arg, const Tensor& x_arg,
                  const NormArgs& norm_args, const Linear<Acc>& first, const Linear<Acc>& last,
                  const std::optional<MapShift>& shift, const NormArgs& post,
                  const OptionalTensor& scale) {
  STD_TORCH_CHECK(to.size() == 10, "10 gradients are wanted, got ", to.size());
  const Images dy = Images::of(dy_arg, Acc{}, "dy"), x = Images::of(x_arg, Acc{}, "x");
  check_shape(x.x, {1, dy.rows, first.K}, "x");
  check_shape(dy.x, {1, x.rows, last.N}, "dy");
  STD_TORCH_CHECK(first.N == last.K, "weights do not fit");
  const PositionNorm<Acc> norm(x, norm_args), none(x, kNoNorm);
  const bool activates = first.activation != Activation::kNone;
  const bool rounded = in_bfloat16(x, dy);

  const Images slopes = activates ? new_slopes<Acc>(x, first.N) : x;
  const Images* const kept = activates ? &slopes : nullptr;
  Images hidden = new_map<Acc>(x, first.N, rounded);
  forward(first, x, norm, rounded, &hidden, kept);
  if (shift) hidden = shift->apply<Acc>(spatial_shift, hidden);
  Images branch = dy;
  if (to[9] || post.kind != kNone) {
    branch = new_map<Acc>(x, last.N, rounded);
    forward(last, hidden, none, rounded, &branch, nullptr);
  }
  const Images dbranch =
      finish_backward<Acc>(dy, branch, rounded, post, scale, to[7], to[8], to[9]);
  linear_gradients(dbranch, hidden, none, rounded, to[5], to[6]);
  const bool wants_normed = to[0] || to[1] || to[2];
  if (!wants_normed && !to[3] && !to[4]) return;

  Images dhidden = new_map<Acc>(x, first.N, rounded);
  backward(last, dbranch, nullptr, dbranch, &dhidden);
  if (shift) dhidden = shift->apply<Acc>(spatial_shift_backward, dhidden);
  const bool through_norm = wants_normed && norm_args.kind != kNone;
  const Images dx = to[0] ? Images::result(*to[0], Acc{}, "the gradient of x") : x;
  check_shape(dx.x, {1, x.rows, x.columns}, "the gradient of x");
  const Images dnormed = through_norm ? new_map<Acc>(x, x.columns, rounded) : dx;
  backward(first, dhidden, kept, dhidden, wants_normed ? &dnormed : nullptr);
  linear_gradients(dhidden, x, norm, rounded, to[3], to[4]);
  if (through_norm) norm_gradients(dnormed, x, norm, to[0] ? &dx : nullptr, to[1], to[2]);
}

template <class Acc>
void linear_backward(const Gradients& to, const Tensor& dy_arg, const Tensor& x_arg,
                     const Linear<Acc>& linear, const std::string& shift,
                     const OptionalTensor& scale) {
  STD_TORCH_CHECK(to.size() == 4, "4 gradients are wanted, got ", to.size());
  const Images dy = Images::of(dy_arg, Acc{}, "dy");
  check_shape(dy.x, {1, dy.rows, linear.N}, "dy");
  readable<Acc>(x_arg, "x");
  STD_TORCH_CHECK(
      x_arg.dim() >= 3 && x_arg.size(-1) == linear.K && x_arg.numel() == dy.rows * linear.K,
      "x has a wrong shape");
  const Images dx = to[0] ? Images::result(*to[0], Acc{}, "the gradient of x") : dy;
  if (to[0]) check_shape(dx.x, {1, dy.rows, linear.K}, "the gradient of x");
  const Images x = map_of<Acc>(spatial_shift(x_arg, shift), dy.rows, linear.K);
  const PositionNorm<Acc> none(x, kNoNorm);
  const bool activates = linear.activation != Activation::kNone;
  const bool rounded = in_bfloat16(x, dy);

  const Images slopes = activates ? new_slopes<Acc>(x, linear.N) : dy;
  const Images branch = to[3] ? new_map<Acc>(x, linear.N, rounded) : dy;
  const Images* const kept = activates ? &slopes : nullptr;
  if (activates || to[3]) forward(linear, x, none, rounded, to[3] ? &branch : nullptr, kept);
  const Images dbranch =
      finish_backward<Acc>(dy, branch, rounded, kNoNorm, scale, kNothing, kNothing, to[3]);
  const Images dinner = activates ? new_map<Acc>(x, linear.N, rounded) : dbranch;
  const Images dmoved = to[0] ? new_map<Acc>(x, linear.K, rounded) : dy;
  if (activates || to[0]) {
    backward(linear, dbranch, kept, dinner, to[0] ? &dmoved : nullptr);
  }
  linear_gradients(dinner, x, none, rounded, to[1], to[2]);
  if (to[0]) {
    const Tensor map = torch::stable::reshape(dmoved.x, x_arg.sizes());
    Tensor like_x = torch::stable::reshape(dx.x, x_arg.sizes());
    torch::stable::copy_(like_x, spatial_shift_backward(map, shift));
  }
}

void channel_mlp_backward(const Gradients& to, const Tensor& dy, const Tensor& x,
                          const std::string& norm, const OptionalTensor& norm_weight,
                          const OptionalTensor& norm_bias, double eps, const Tensor& w1,
                          const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                          const std::string& activation, const std::string& post_norm,
                          const OptionalTensor& post_norm_weight,
                          const OptionalTensor& post_norm_bias, double post_eps,
                          const OptionalTensor& scale) {
  with_accumulator(x, [&](auto zero) {
    mlp_backward<decltype(zero)>(to, dy, x, {norm, norm_weight, norm_bias, eps},
                                 {w1, b1, activation_of(activation), "w1"},
                                 {w2, b2, Activation::kNone, "w2"}, std::nullopt,
                                 {post_norm, post_norm_weight, post_norm_bias, post_eps}, scale);
  });
}

void shift_linear_backward(const Gradients& to, const Tensor& dy, const Tensor& x,
                           const Tensor& weight, const OptionalTensor& bias,
                           const std::string& shift, const std::string& activation,
                           const OptionalTensor& scale) {
  with_accumulator(x, [&](auto zero) {
    linear_backward<decltype(zero)>(to, dy, x, {weight, bias, activation_of(activation)}, shift,
                                    scale);
  });
}

void shift_mlp_backward(const Gradients& to, const Tensor& dy, const Tensor& x, int64_t H,
                        int64_t W, const std::string& norm, const OptionalTensor& norm_weight,
                        const OptionalTensor& norm_bias, double eps, const Tensor& w1,
                        const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                        const std::string& shift, const std::string& activation,
                        const std::string& post_norm, const OptionalTensor& post_norm_weight,
                        const OptionalTensor& post_norm_bias, double post_eps,
                        const OptionalTensor& scale) {
  with_accumulator(x, [&](auto zero) {
    mlp_backward<decltype(zero)>(to, dy, x, {norm, norm_weight, norm_bias, eps},
                                 {w1, b1, activation_of(activation), "w1"},
                                 {w2, b2, Activation::kNone, "w2"}, MapShift{H, W, shift},
                                 {post_norm, post_norm_weight, post_norm_bias, post_eps}, scale);
  });
}

}  // namespace
}  // namespace shiftmlp

STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cpu, CPU, m) {
  m.impl("channel_mlp_backward", TORCH_BOX(&shiftmlp::channel_mlp_backward));
  m.impl("shift_linear_backward", TORCH_BOX(&shiftmlp::shift_linear_backward));
  m.impl("shift_mlp_backward", TORCH_BOX(&shiftmlp::shift_mlp_backward));
}
