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
  const float *mean{}, *rstd{};  // of LayerNorm, for every row; null: affine
  Vector weight{};
  float *dweight{}, *dbias{};  // their gradients' sums, for every kNormRows rows; null: not wanted
};
constexpr int kNormRows = 64;

// Whether the current device and this product allow it: of one image, whose columns' operand is
// plain and whose rows' operand at most shifted; the result has no row_bias and no factor, and what
// is moved goes in groups of 8 channels. Before a norm's adjoint there is the product alone.
bool fits_sm90(const Product& p, const MoveOnWrite& move = {}, const NormAdjoint& norm = {});

void launch_product_sm90(const Product& p, const MoveOnWrite& move, const NormAdjoint& norm,
                         cudaStream_t stream);

}  // namespace shiftmlp
