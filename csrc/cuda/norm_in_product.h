// The adjoint of a norm where the product before it stores what follows, as the ops' backwards
// launch it on sm_90a; and the sums over rows that such kernels leave of a norm's gradients.
#pragma once

#include "operands.h"

namespace shiftmlp {

// What a kernel leaves of a gradient, if that is wanted: sums over some rows each, `count` of them
// for every image.
struct RowSums {
  OptionalTensor gradient;
  float* data;
  Images sums;

  RowSums(Call& call, const OptionalTensor& gradient, int64_t images, int32_t count,
          int32_t columns)
      : gradient(gradient),
        data(gradient ? call.floats(images * count * columns) : nullptr),
        sums{{data, int64_t{count} * columns, columns}, DType::kFloat32, images, count, columns} {}

  void launch_total(Call& call, cudaStream_t stream) const {
    launch_sum_over_rows(call, sums, {}, gradient, stream);
  }
};

// Of the norm of x, for fits_sm90.
inline NormAdjoint adjoint_of(const Images& x, const NormParams& norm) {
  return {x.rows, norm.mean, norm.rstd, norm.weight};
}

// The gradients of x, into p's result, and of the norm's weight and bias, by p: its sums are the
// gradient of the norm of x.
inline void launch_norm_in_product(Call& call, const Product& p, const Images& x,
                                   const NormParams& norm, const OptionalTensor& dweight,
                                   const OptionalTensor& dbias, cudaStream_t stream) {
  const auto parts = static_cast<int32_t>(ceil_div(x.count, kNormRows));
  const RowSums weight(call, dweight, x.images, parts, x.columns),
      bias(call, dbias, x.images, parts, x.columns);
  NormAdjoint adjoint = adjoint_of(x, norm);
  adjoint.dweight = weight.data, adjoint.dbias = bias.data;
  launch_product_sm90(p, {}, adjoint, stream);
  weight.launch_total(call, stream), bias.launch_total(call, stream);
}

}  // namespace shiftmlp
