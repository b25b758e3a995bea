// What the adapters of the ops that mix tokens share: rows are tokens, columns channels, and a
// weight stands to the left of every image, (B, rows, columns).
#pragma once

#include "operands.h"

namespace shiftmlp {

// A (rows, columns) weight whose rows begin at multiples of 16 bytes, as fast copies want them.
inline Tensor aligned(const Tensor& weight) {
  const int64_t word = 16 / weight.element_size();
  const int64_t rest = weight.dim() == 2 ? weight.size(1) % word : 0;
  if (rest == 0) return weight;
  Tensor padded = torch::stable::pad(weight, {0, word - rest}, "constant", 0.0);
  return torch::stable::narrow(padded, 1, 0, weight.size(1));
}

// A layer over the tokens.
struct TokenLayer : Layer {
  using Layer::Layer;

  // Of x, of whose rows `in` is made.
  Product product(const Call& call, const Images& x, const Operand& in, const Result& y) const {
    return {call.dtype(), in, operand_of(w, false), y, x.images, x.columns, w.count, w.columns};
  }
  // The gradient of what was multiplied, from that of the sums.
  Product backward(const Call& call, const Images& dy, const Operand& in, const Result& dx) const {
    return {call.dtype(), in, operand_of(w, true), dx, dy.images, dy.columns, w.columns, w.count};
  }
  // The gradient of w.
  Product gradient(const Call& call, const Images& dy, const Operand& dsums,
                   const Operand& in) const {
    return {call.dtype(), in, dsums, {}, dy.images, w.columns, w.count, dy.columns};
  }
};

}  // namespace shiftmlp
