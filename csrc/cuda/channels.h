// What the adapters of the ops that mix channels share: rows are positions, all in one image, and a
// weight stands to the right of them, (rows, columns).
#pragma once

#include <optional>

#include "operands.h"
#include "spatial_shift.h"

namespace shiftmlp {

inline const std::string kNone = "none";
inline const OptionalTensor kNothing;
inline const NormArgs kNoNorm{kNone, kNothing, kNothing, 0};

// A layer over the channels of every position.
struct ChannelLayer : Layer {
  using Layer::Layer;

  // Of `positions` rows, of which `in` is made.
  Product product(const Call& call, int32_t positions, const Operand& in, const Result& y) const {
    return {call.dtype(), operand_of(w, false), in, y, 1, w.count, positions, w.columns};
  }
  // Into y, with the activation or without.
  Result result(const Call& call, const Tensor& y, Activation activation) const {
    Result to = call.result(y);
    to.column_bias = bias, to.activation = activation;
    return to;
  }
  // The same into fresh memory.
  Images launch(Call& call, int32_t positions, const Operand& in, Activation activation,
                cudaStream_t stream) const {
    const Tensor y = call.empty({1, positions, w.count}, call.dtype());
    multiply(product(call, positions, in, result(call, y, activation)), stream);
    return call.images(y, "the result of a layer");
  }
  // The gradient of what was multiplied, from that of the sums.
  Product backward(const Call& call, int32_t positions, const Operand& dsums,
                   const Result& dx) const {
    return {call.dtype(), operand_of(w, true), dsums, dx, 1, w.columns, positions, w.count};
  }
  // The gradient of w.
  Product gradient(const Call& call, int32_t positions, const Operand& dsums,
                   const Operand& in) const {
    return {call.dtype(), in, dsums, {}, 1, w.columns, w.count, positions};
  }
};

// A shift of `channels` channels of the maps that the positions make up.
class MapShift {
 public:
  MapShift(int64_t H, int64_t W, const std::string& spec, int32_t positions, int32_t channels)
      : H_(side(H)), W_(side(W)), C_(side(channels)), shift_(Shift::parse(spec).within(H_, W_)) {
    STD_TORCH_CHECK(H > 0 && W > 0 && positions % (H * W) == 0, "H and W do not fit x");
    B_ = positions / (H * W);
  }

  // The operand after the shift, which must outlive its launch.
  Operand of(Operand operand) const {
    operand.shift = &shift_, operand.H = H_, operand.W = W_;
    return operand;
  }

  // The same for a layer that moves its result, which must not outlive this.
  MoveOnWrite on_write() const { return {&shift_, H_, W_}; }

  // Into y, which is contiguous.
  void launch(const Images& x, const Tensor& y, cudaStream_t stream) const {
    launch_spatial_shift(params(x.rows, y, shift_), stream);
  }

  // The adjoint. Both are contiguous.
  void launch_backward(const Tensor& dy, const Tensor& dx, cudaStream_t stream) const {
    STD_TORCH_CHECK(check_result(dx, "the gradient of x") == dtype_of(dy),
                    "the gradient of x must have the dtype of x");
    if (C_ == 0) return;
    const Rows rows{dy.const_data_ptr(), 0, C_};
    if (shift_.border == Border::kKeep) {
      launch_spatial_shift_keep_backward(params(rows, dx, shift_), dtype_of(dy), stream);
    } else {
      launch_spatial_shift(params(rows, dx, shift_.reversed().within(H_, W_)), stream);
    }
  }

 private:
  SpatialShiftParams params(const Rows& x, const Tensor& y, const Shift& shift) const {
    return {x.data,
            y.mutable_data_ptr(),
            B_,
            H_,
            W_,
            C_,
            static_cast<int32_t>(y.element_size()),
            x.stride * H_ * W_,
            x.stride * W_,
            x.stride,
            shift};
  }

  static int32_t side(int64_t size) {
    STD_TORCH_CHECK(size <= kMaxSide, "H, W and the channels must be at most ", kMaxSide, ", got ",
                    size);
    return static_cast<int32_t>(size);
  }

  int64_t B_;
  int32_t H_, W_, C_;
  Shift shift_;
};

struct ShiftArgs {
  int64_t H, W;
  const std::string& spec;
};

// Two layers between two norms, perhaps with a shift before the second one.
struct Mlp {
  Images x;
  NormArgs norm, post;
  ChannelLayer first, last;
  std::optional<MapShift> shift;

  Mlp(Call& call, const Tensor& given, const NormArgs& norm, const Tensor& w1,
      const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
      const std::string& activation, const NormArgs& post,
      const std::optional<ShiftArgs>& between = {})
      : x(call.images(given, "x")),
        norm(norm),
        post(post),
        first(call, w1, b1, x.columns, "w1", activation_of(activation)),
        last(call, w2, b2, first.w.count, "w2") {
    STD_TORCH_CHECK(x.images == 1, "x must be one image, got ", x.images);
    if (between) shift.emplace(between->H, between->W, between->spec, x.count, first.w.count);
  }

  // x as the first layer takes it.
  Normed launch_norm_of_x(Call& call, const NormParams& params, cudaStream_t stream) const {
    const Result to{nullptr, call.dtype(), 0, first.w.count};
    return launch_norm_of(call, x, params, norm.eps, false, stream,
                          [&](const Operand& in) { return first.product(call, x.count, in, to); });
  }
  // x as the gradient of the first layer's weight takes it too.
  Normed launch_norm_of_x_backward(Call& call, const NormParams& params,
                                   cudaStream_t stream) const {
    const Operand dsums{{nullptr, 0, first.w.count}, true};
    return launch_norm_of(call, x, params, norm.eps, true, stream, [&](const Operand& in) {
      return in_parts(first.gradient(call, x.count, dsums, in));
    });
  }

  // What the second layer takes; what entered the activation goes to `inner`, where that is given.
  // A kernel that can moves the hidden as it is stored.
  Operand launch_hidden(Call& call, const Normed& in, void* inner, cudaStream_t stream) const {
    const Tensor memory = call.empty({1, x.count, first.w.count}, call.dtype());
    Result to = first.result(call, memory, first.activation);
    to.inner = inner;
    const Product p = first.product(call, x.count, in.operand(false), to);
    const Operand hidden = operand_of(call.images(memory, "the hidden"), false);
    if (shift && fits_sm90(p, shift->on_write())) {
      launch_product_sm90(p, shift->on_write(), {}, stream);
      return hidden;
    }
    multiply(p, stream);
    return shift ? shift->of(hidden) : hidden;
  }
};

// Of shift_linear: every pixel of a (..., H, W, C) map, in one image.
inline Images pixels_of(Call& call, const Tensor& map) {
  STD_TORCH_CHECK(map.dim() >= 3, "x must be (..., H, W, C), got ", map.dim(), " dimensions");
  int64_t positions = 1;
  for (int64_t dim = 0; dim + 1 < map.dim(); ++dim) positions *= map.size(dim);
  return call.images(torch::stable::reshape(map, {1, positions, map.size(-1)}), "x");
}

}  // namespace shiftmlp
