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
  Tensor weight;

  TokenLayer(Call& call, const Tensor& weight, const OptionalTensor& bias, int32_t columns,
             const char* name = "weight", Activation activation = Activation::kNone)
      : Layer(call, weight, bias, columns, name, activation), weight(weight) {}

  // Of x, of whose rows `in` is made.
  Product product(const Call& call, const Images& x, const Operand& in, const Result& y) const {
    return {call.dtype(), in, operand_of(w, false), y, x.images, x.columns, w.count, w.columns};
  }
  // The gradient of what was multiplied, from that of the sums.
  Product backward(const Call& call, const Images& dy, const Operand& in, const Result& dx) const {
    return {call.dtype(), in, operand_of(w, true), dx, dy.images, dy.columns, w.columns, w.count};
  }
  // The same with w's transpose in memory, of which the columns are summed over; for fits_sm90 it
  // need not be there.
  Product backward(const Call& call, const Images& dy, const Operand& in, const Result& dx,
                   const void* transpose) const {
    Product p = backward(call, dy, in, dx);
    p.rows = {{transpose, 0, stride_of_transpose()}, false};
    return p;
  }
  const void* transpose(Call& call) const {
    Tensor memory = call.empty({w.columns, stride_of_transpose()}, call.dtype());
    Tensor rows = torch::stable::narrow(memory, 1, 0, w.count);
    torch::stable::copy_(rows, torch::stable::transpose(weight, 0, 1));
    return memory.const_data_ptr();
  }
  // The gradient of w.
  Product gradient(const Call& call, const Images& dy, const Operand& dsums,
                   const Operand& in) const {
    return {call.dtype(), in, dsums, {}, dy.images, w.columns, w.count, dy.columns};
  }

 private:
  // That of rows which begin at multiples of 16 bytes, if an element has 2.
  int64_t stride_of_transpose() const { return ceil_div(w.count, 8) * 8; }
};

}  // namespace shiftmlp
