// The product on sm_90a, of operands that TMA takes as they lie in memory. No torch.
#pragma once

#include "product.h"

namespace shiftmlp {

// A shift of the result as it is stored: row n of it is a pixel of H x W maps. Without one: none.
struct MoveOnWrite {
  const Shift* shift;  // on the host, already within(H, W)
  int32_t H, W;
};

// The adjoint of the norm over the columns of x, of whose result the product is the gradient: what
// is stored is the gradient of x.
struct NormAdjoint {
  Rows x{};                      // in the product's dtype. Without data: no norm
  const float *mean{}, *rstd{};  // of LayerNorm, (images, rows); null: affine
  Vector weight{};
  float *dweight{}, *dbias{};  // their gradients' sums, for every kNormRows rows of an image: each
                               // (images, ceil(rows / kNormRows), columns); null: not wanted
};
constexpr int kNormRows = 64;

// Whether the current device and this product allow it: the columns' operand is plain and the rows'
// operand at most shifted, or normed if they are one image's and neither side's rows are summed
// over; the result has no factor, and what is moved is one image and goes in groups of 8 channels.
// Before a norm's adjoint there is the product alone, of rows that are not summed over.
bool fits_sm90(const Product& p, const MoveOnWrite& move = {}, const NormAdjoint& norm = {});

void launch_product_sm90(const Product& p, const MoveOnWrite& move, const NormAdjoint& norm,
                         cudaStream_t stream);

}  // namespace shiftmlp
