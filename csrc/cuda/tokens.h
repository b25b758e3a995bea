// What the adapters of the ops that mix tokens share: rows are tokens, columns channels, and a
// weight stands to the left of every image, (B, rows, columns).
#pragma once

#include "operands.h"

namespace shiftmlp {

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
