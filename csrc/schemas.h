// The kernels' schemas, which are the same in every native library.
#pragma once

#include <torch/csrc/stable/library.h>

template <class Library>
void define_kernels(Library& m) {
  m.def("spatial_shift(Tensor x, str shift) -> Tensor");
  m.def("spatial_shift_backward(Tensor dy, str shift) -> Tensor");
  // Results are handed in, (images, tokens, channels) like x; without tokens, all is one image.
  m.def(
      "token_linear(Tensor(a!) y, Tensor x, str norm, Tensor? norm_weight, Tensor? norm_bias,"
      " float eps, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual) -> ()");
  m.def(
      "token_mlp(Tensor(a!) y, Tensor x, str norm, Tensor? norm_weight, Tensor? norm_bias,"
      " float eps, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation, Tensor? scale,"
      " Tensor? residual) -> ()");
  m.def(
      "token_gate(Tensor(a!) y, Tensor u, Tensor v, str norm, Tensor? norm_weight,"
      " Tensor? norm_bias, float eps, Tensor weight, Tensor? bias) -> ()");
  m.def(
      "channel_mlp(Tensor(a!) y, Tensor x, str norm, Tensor? norm_weight, Tensor? norm_bias,"
      " float eps, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation, str post_norm,"
      " Tensor? post_norm_weight, Tensor? post_norm_bias, float post_eps, Tensor? scale,"
      " Tensor? residual) -> ()");
  m.def(
      "shift_linear(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, str shift,"
      " str activation, Tensor? scale, Tensor? residual) -> ()");
  m.def(
      "shift_mlp(Tensor(a!) y, Tensor x, int H, int W, str norm, Tensor? norm_weight,"
      " Tensor? norm_bias, float eps, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str shift,"
      " str activation, str post_norm, Tensor? post_norm_weight, Tensor? post_norm_bias,"
      " float post_eps, Tensor? scale, Tensor? residual) -> ()");
  // Gradients are handed in as well, in the order of the tensors; null where none is wanted.
  m.def(
      "token_linear_backward(Tensor?[] gradients, Tensor dy, Tensor x, str norm,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor weight, Tensor? bias,"
      " Tensor? scale) -> ()");
  m.def(
      "token_mlp_backward(Tensor?[] gradients, Tensor dy, Tensor x, str norm,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor w1, Tensor? b1, Tensor w2,"
      " Tensor? b2, str activation, Tensor? scale) -> ()");
  m.def(
      "token_gate_backward(Tensor?[] gradients, Tensor dy, Tensor u, Tensor v, str norm,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor weight, Tensor? bias) -> ()");
  m.def(
      "channel_mlp_backward(Tensor?[] gradients, Tensor dy, Tensor x, str norm,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor w1, Tensor? b1, Tensor w2,"
      " Tensor? b2, str activation, str post_norm, Tensor? post_norm_weight,"
      " Tensor? post_norm_bias, float post_eps, Tensor? scale) -> ()");
  m.def(
      "shift_linear_backward(Tensor?[] gradients, Tensor dy, Tensor x, Tensor weight,"
      " Tensor? bias, str shift, str activation, Tensor? scale) -> ()");
  m.def(
      "shift_mlp_backward(Tensor?[] gradients, Tensor dy, Tensor x, int H, int W, str norm,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor w1, Tensor? b1, Tensor w2,"
      " Tensor? b2, str shift, str activation, str post_norm, Tensor? post_norm_weight,"
      " Tensor? post_norm_bias, float post_eps, Tensor? scale) -> ()");
}
