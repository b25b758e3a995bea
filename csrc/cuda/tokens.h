// What the adapters of the ops that mix tokens share: rows are tokens, columns channels, and a
// weight stands to the left of every image, (B, rows, columns).
#pragma once

#include "operands.h"

namespace shiftmlp {

// activation(w * x + bias), over the tokens.
struct TokenLayer {
  Images w;
  Vector bias;
  Activation activation;

  TokenLayer(Call& call, const Tensor& weight, const OptionalTensor& bias, int32_t tokens,
             const char* name = "weight", Activation activation = Activation::kNone)
      : w(call.weight(weight, tokens, name)),
        bias(call.vector(bias, w.count, "a bias")),
        activation(activation) {}

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
