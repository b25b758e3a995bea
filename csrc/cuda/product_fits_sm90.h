// Which operands and results the product on sm_90a takes.
#pragma once

#include "chunks_sm90.h"

namespace shiftmlp {

inline bool is_plain(const Operand& o) {
  return !o.mean && !o.weight.data && !o.bias.data && !o.factor.data;
}

// Whether all that is done to the rows is a norm, on their way into the product.
inline bool fits_norm_of_rows(const Product& p) {
  return p.images == 1 && !p.columns.sums_rows && !p.rows.shift && !p.rows.factor.data;
}

// Of a last piece of 16 bytes, TMA loads what belongs to the row.
inline bool fits_tma_of(const Rows& rows, int64_t columns) {
  const int64_t whole = (columns + 7) / 8 * 8;
  const bool one = rows.stride_b == 0;
  return one ? fits_tma(rows.data, rows.stride, whole) : fits_tma(rows, whole);
}

inline bool fits_tma_of(const Operand& o, int32_t size, int32_t K) {
  return fits_tma_of(o.rows, o.sums_rows ? size : K);
}

// Whether the kernel with Finish::kSlope is meant.
inline bool has_slope(const Product& p) { return p.result.slope_of.data || p.rows.sums_rows; }

inline bool fits_norm(const Product& p, const NormAdjoint& norm) {
  const Result& y = p.result;
  if (!norm.x.data) return true;
  if (!p.columns.sums_rows || has_slope(p) || y.dtype != p.dtype) return false;
  const bool alone = !y.row_bias.data && !y.column_bias.data && !y.scale.data && !y.residual.data &&
                     !y.inner && y.activation == Activation::kNone;
  if (!alone) return false;
  return fits_tma_of(norm.x, p.M) && (!norm.mean || p.M <= kMostBlocks * 256);
}

inline bool fits_result(const Product& p) {
  const Result& y = p.result;
  if (y.factor.data) return false;
  if (has_slope(p)) {
    const bool activates = y.activation != Activation::kNone;
    if (!p.columns.sums_rows || y.residual.data || y.row_bias.data || y.inner) return false;
    if (activates && !y.slope_of.data) return false;
  }
  if (y.inner && (y.residual.data || y.scale.data || y.dtype != p.dtype)) return false;
  const auto fits = [&p](const Rows& rows) {
    return !rows.data || (p.M % 8 == 0 && fits_tma_of(rows, p.M));
  };
  if (!fits(y.residual) || !fits(y.slope_of)) return false;
  if (y.dtype == DType::kFloat32) {  // stored by twos
    return reinterpret_cast<uintptr_t>(y.data) % 8 == 0 && (p.M | y.stride | y.stride_b) % 2 == 0;
  }
  const Rows inner{y.inner, y.stride_b, y.stride};
  return y.dtype == p.dtype && p.M % 8 == 0 && fits(inner) &&
         fits_tma_of({y.data, y.stride_b, y.stride}, p.M);
}

}  // namespace shiftmlp
