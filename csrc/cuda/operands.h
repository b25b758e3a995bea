// Tensors as the kernels take them, memory for what one kernel hands to the next, and in how many
// parts a sum is computed: a function of its sizes alone, so that the same bits come out anywhere.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../tensors.h"
#include "launch.h"
#include "passes.h"

namespace shiftmlp {

constexpr int64_t kBlocks = 132;  // that keep a large device busy
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As many parts of `work` that has `blocks` blocks already as fill a device, each worth `least`.
inline int32_t parts_of(int64_t work, int64_t least, int64_t blocks = 1) {
  const int64_t wanted = std::min(ceil_div(kBlocks, blocks), work / least);
  return static_cast<int32_t>(std::max<int64_t>(wanted, 1));
}

inline int32_t size_of(const Tensor& x, int64_t dim, const char* name) {
  const int64_t size = x.size(dim);
  STD_TORCH_CHECK(size <= std::numeric_limits<int32_t>::max(), name,
                  " must have sizes below 2^31, got ", size);
  return static_cast<int32_t>(size);
}

inline torch::headeronly::ScalarType scalar_type_of(DType dtype) {
  using torch::headeronly::ScalarType;
  constexpr ScalarType types[] = {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float,
                                  ScalarType::Double};  // DType's order
  return types[static_cast<int>(dtype)];
}

// One call of an op. What it had to copy and what it works in live as long: memory that is freed
// while kernels are still to run is used again behind them, in the order of their stream.
class Call {
 public:
  // `x` is what the products' dtype and the memory's device are taken from.
  explicit Call(const Tensor& x) : like_(x), dtype_(product_dtype(x)) {}

  DType dtype() const { return dtype_; }

  // (images, rows, columns), or a matrix as one image, in the products' dtype; nothing of nothing.
  Images images(const OptionalTensor& given, const char* name) {
    if (!given) return {};
    const DType dtype = dtype_of(*given, name);
    STD_TORCH_CHECK(dtype == dtype_, name, " must have the dtype of the other matrices, which is ",
                    torch::headeronly::toString(like_.scalar_type()));
    const int64_t rows = given->dim() - 2;
    STD_TORCH_CHECK(rows == 0 || rows == 1, name, " must have 2 or 3 dimensions");
    const bool dense = given->size(rows + 1) <= 1 || given->stride(rows + 1) == 1;
    const Tensor& x = dense ? keep(*given) : keep(torch::stable::contiguous(*given));
    return {{x.const_data_ptr(), rows ? x.stride(0) : 0, x.stride(rows)},
            dtype,
            rows ? x.size(0) : 1,
            size_of(x, rows, name),
            size_of(x, rows + 1, name)};
  }
  Images images(const OptionalTensor& given, std::initializer_list<int64_t> sizes,
                const char* name) {
    if (given) check_shape(*given, sizes, name);
    return images(given, name);
  }

  // (n,), in any dtype but float64.
  Vector vector(const OptionalTensor& given, int64_t n, const char* name) {
    if (!given) return {};
    check_shape(*given, {n}, name);
    const DType dtype = dtype_of(*given, name);
    STD_TORCH_CHECK(dtype != DType::kFloat64, name, " must not be float64");
    const Tensor& x = keep(torch::stable::contiguous(*given));
    return {x.const_data_ptr(), dtype};
  }

  // Fresh memory.
  Tensor empty(std::initializer_list<int64_t> sizes, DType dtype) {
    return keep(torch::stable::new_empty(
        like_, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()),
        scalar_type_of(dtype)));
  }
  float* floats(int64_t n) {
    return static_cast<float*>(empty({n}, DType::kFloat32).mutable_data_ptr());
  }

 private:
  static DType product_dtype(const Tensor& x) {
    const DType dtype = dtype_of(x);
    STD_TORCH_CHECK(dtype == DType::kFloat16 || dtype == DType::kBFloat16,
                    "x must be float16 or bfloat16, got ",
                    torch::headeronly::toString(x.scalar_type()));
    return dtype;
  }

  const Tensor& keep(const Tensor& x) {
    kept_.push_back(x);
    return kept_.back();
  }

  const Tensor like_;
  const DType dtype_;
  std::vector<Tensor> kept_;
};

// A product's sums into y, (images, rows, columns) or (rows, columns) and contiguous.
inline Result result_in(const Tensor& y) {
  STD_TORCH_CHECK(y.is_contiguous(), "results must be contiguous");
  const int64_t columns = y.size(y.dim() - 1);
  return {y.mutable_data_ptr(), dtype_of(y), columns * y.size(y.dim() - 2), columns};
}

// The sum over all images of p's result, which it need not have, into `gradient`: (N, M).
inline void launch_sum_of_products(Call& call, Product p, const Tensor& gradient,
                                   cudaStream_t stream) {
  check_shape(gradient, {p.N, p.M}, "the gradient of a weight");
  const int64_t elements = int64_t{p.N} * p.M;
  p.splits = parts_of(p.images * p.K, 256, ceil_div(p.M, 128) * ceil_div(p.N, 128));
  float* parts = call.floats(p.splits * elements);
  p.result = {parts, DType::kFloat32, elements, p.M};
  launch_product(p, stream);
  const Result sum = result_in(gradient);
  launch_sum_parts(parts, p.splits, elements, sum.data, sum.dtype, stream);
}

}  // namespace shiftmlp
