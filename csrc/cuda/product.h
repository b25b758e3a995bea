// The product on tensor cores that the ops of the portable path (sm_80 and later) are put together
// from: what happens to its operands on their way in and to its sums on their way out. No torch.
//
// Tokens and channels alike: the result is rows (tokens, pixels, or rows of a weight) whose columns
// (channels) are dense in memory. A product computes it as (M, N) = (columns, rows), so that what
// is known for each token or channel stays with one side.
#pragma once

#include <cuda_runtime_api.h>

#include "../activation.h"
#include "../dispatch.h"
#include "../shift.h"

namespace shiftmlp {

// Rows in memory, of every image, whose columns are dense. Strides count elements; an image's is 0
// where all images share the rows. Without data: nothing.
struct Rows {
  const void* data;
  int64_t stride_b, stride;
};

// A number for every row or column, in float16, bfloat16 or float32. Without data: nothing.
struct Vector {
  const void* data;
  DType dtype;
};

// One side of a product, made of rows in memory: its elements are factor * norm(shift(rows)), each
// part as far as it is given, rounded to the product's dtype once, or from float32 to TF32's 10
// bits of fraction.
struct Operand {
  Rows rows;
  bool sums_rows;                // what is summed over: the rows, or their columns
  const Shift* shift{};          // on the host: of the columns of an H x W map; null: none
  int32_t H{}, W{};              // of the shift, already within(H, W); a row is (b, h, w)
  const float *mean{}, *rstd{};  // of the norm, for every row of every image; null: none
  Vector weight{}, bias{};       // of the norm, for every column
  Rows factor{};                 // for every element, in the operand's dtype
};

// Where the sums go: y = residual + factor * scale * f(sum + row_bias + column_bias), rounded once.
// f is the activation; where `slope_of` is given, f(v) = v * activation'(slope_of).
struct Result {
  void* data;
  DType dtype;  // the product's, or float32
  int64_t stride_b, stride;
  Vector row_bias{}, column_bias{};
  Activation activation{};
  Rows slope_of{};  // this, factor and residual for every element, in the product's dtype
  Vector scale{};   // for every column
  Rows factor{}, residual{};
  void* inner{};  // where what enters the activation goes too, unless that is a slope's: laid out
                  // like the result, in the product's dtype; null: nowhere
};

// result(b) = columns(b) * rows(b), summed over K, for every image b; or, with splits > 0, in
// float32 and summed over all images too: in that many parts, each an image of the result, which
// launch_sum_parts adds up. Rows that are summed over in the rows are so in the columns too.
struct Product {
  DType dtype;            // of both operands: not float64. Sums are in float32.
  Operand columns, rows;  // (M, K) and (N, K): the result's columns and rows
  Result result;
  int64_t images;
  int32_t M, N, K;
  int32_t splits{};
};

void launch_product(const Product& p, cudaStream_t stream);

}  // namespace shiftmlp
