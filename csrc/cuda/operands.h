// Tensors as the kernels take them, memory for what one kernel hands to the next, and in how many
// parts a sum is computed: a function of its sizes alone, so that the same bits come out anywhere.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../tensors.h"
#include "launch.h"
#include "passes.h"
#include "product_sm90.h"

namespace shiftmlp {

constexpr int64_t kBlocks = 132;  // that keep a large device busy
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As many parts of `work`, each worth `least`, as fill a device with two blocks of a pass on every
// multiprocessor and leave none for a second turn. A part has `blocks` of them.
inline int32_t parts_of(int64_t work, int64_t least, int64_t blocks = 1) {
  const int64_t wanted = std::min(2 * kBlocks / std::max<int64_t>(blocks, 1), work / least);
  return static_cast<int32_t>(std::max<int64_t>(wanted, 1));
}

inline torch::headeronly::ScalarType scalar_type_of(DType dtype) {
  using torch::headeronly::ScalarType;
  constexpr ScalarType types[] = {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float,
                                  ScalarType::Double};  // DType's order
  return types[static_cast<int>(dtype)];
}

// What a kernel writes.
inline DType check_result(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
  const DType dtype = dtype_of(x, name);
  STD_TORCH_CHECK(dtype != DType::kFloat64, name, " must not be float64");
  return dtype;
}

// One call of an op. What it had to copy and what it works in live as long: memory that is freed
// while kernels are still to run is used again behind them, in the order of their stream.
class Call {
 public:
  // `x` is what the products' dtype and the memory's device are taken from. In float32 they run in
  // TF32: who calls has asked whether that is allowed.
  explicit Call(const Tensor& x, const char* name = "x") : like_(x), dtype_(dtype_of(x, name)) {
    STD_TORCH_CHECK(dtype_ != DType::kFloat64, name, " must not be float64");
  }

  DType dtype() const { return dtype_; }

  // (images, rows, columns), or (rows, columns) as one image, in the products' dtype; nothing of
  // nothing.
  Images images(const OptionalTensor& given, const char* name) {
    if (!given) return {};
    const int64_t rows = given->dim() - 2;
    STD_TORCH_CHECK(rows == 0 || rows == 1, name, " must have 3 dimensions, got ", given->dim());
    STD_TORCH_CHECK(dtype_of(*given, name) == dtype_, name, " must be ", dtype_name(), ", got ",
                    torch::headeronly::toString(given->scalar_type()));
    const auto size = [&](int64_t dim) {
      STD_TORCH_CHECK(given->size(dim) <= std::numeric_limits<int32_t>::max(), name,
                      " must have rows and columns below 2^31, got ", given->size(dim));
      return static_cast<int32_t>(given->size(dim));
    };
    const bool dense = given->size(rows + 1) <= 1 || given->stride(rows + 1) == 1;
    const Tensor& x = keep(dense ? *given : torch::stable::contiguous(*given));
    const int64_t images = rows ? x.size(0) : 1;
    return {{x.const_data_ptr(), images > 1 ? x.stride(0) : 0, x.stride(rows)},
            dtype_,
            images,
            size(rows),
            size(rows + 1)};
  }
  Images images(const OptionalTensor& given, std::initializer_list<int64_t> sizes,
                const char* name) {
    if (given) check_shape(*given, sizes, name);
    return images(given, name);
  }
  // (rows, columns)
  Images weight(const Tensor& given, int64_t columns, const char* name) {
    STD_TORCH_CHECK(given.dim() == 2, name, " must have 2 dimensions, got ", given.dim());
    return images(given, {given.size(0), columns}, name);
  }

  // (n,), in any dtype but float64.
  Vector vector(const OptionalTensor& given, int64_t n, const char* name) {
    if (!given) return {};
    check_shape(*given, {n}, name);
    const Tensor& x = keep(torch::stable::contiguous(*given));
    return {x.const_data_ptr(), check_result(x, name)};
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

  // The sums of products into y, (images, rows, columns).
  Result result(const Tensor& y, const char* name = "y") const {
    const DType dtype = check_result(y, name);
    STD_TORCH_CHECK(dtype == dtype_ || dtype == DType::kFloat32, name, " must be float32 or ",
                    dtype_name());
    return {y.mutable_data_ptr(), dtype, y.stride(0), y.stride(1)};
  }

 private:
  const char* dtype_name() const { return torch::headeronly::toString(like_.scalar_type()); }

  const Tensor& keep(const Tensor& x) {
    kept_.push_back(x);
    return kept_.back();
  }

  const Tensor like_;
  const DType dtype_;
  std::vector<Tensor> kept_;
};

// activation(w * x + bias)
struct Layer {
  Images w;  // (rows, columns)
  Vector bias;
  Activation activation;

  Layer(Call& call, const Tensor& weight, const OptionalTensor& bias, int32_t columns,
        const char* name = "weight", Activation activation = Activation::kNone)
      : w(call.weight(weight, columns, name)),
        bias(call.vector(bias, w.count, "a bias")),
        activation(activation) {}
};

// x, of which its rows or their columns are summed over, after the norm.
inline Operand operand_of(const Images& x, bool sums_rows, const NormParams& norm = {}) {
  Operand operand{x.rows, sums_rows};
  operand.mean = norm.mean, operand.rstd = norm.rstd;
  operand.weight = norm.weight, operand.bias = norm.bias;
  return operand;
}

// Of x, with memory for its statistics, which are still to be computed.
inline NormParams norm_params_of(Call& call, const Images& x, const NormArgs& norm) {
  STD_TORCH_CHECK(norm.kind == "none" || norm.kind == "affine" || norm.kind == "layer_norm",
                  "no norm ", norm.kind);
  NormParams params{nullptr, nullptr, call.vector(norm.weight, x.columns, "the weight of a norm"),
                    call.vector(norm.bias, x.columns, "the bias of a norm")};
  if (norm.kind == "layer_norm") {
    const int64_t rows = x.images * x.count;
    params.mean = call.floats(2 * rows);
    params.rstd = params.mean + rows;
  }
  return params;
}

inline void launch_moments_of(const Images& x, const NormParams& norm, double eps,
                              cudaStream_t stream) {
  if (norm.mean) launch_moments(x, static_cast<float>(eps), norm.mean, norm.rstd, stream);
}

// Rows, and the norm that they still want on their way into a product.
struct Normed {
  Images rows;
  NormParams norm;

  Operand operand(bool sums_rows) const { return operand_of(rows, sums_rows, norm); }
};

// x as product(operand) takes it, and the statistics. Where sm_90a's takes plain rows alone, the
// norm is made with its statistics, which costs one write of x.
template <class MakeProduct>
Normed launch_norm_of(Call& call, const Images& x, const NormParams& norm, double eps,
                      bool sums_rows, cudaStream_t stream, const MakeProduct& product) {
  const bool has_norm = norm.mean || norm.weight.data || norm.bias.data;
  const int64_t stride_b = x.images > 1 ? int64_t{x.count} * x.columns : 0;
  const Operand dense{{nullptr, stride_b, x.columns}, sums_rows};
  if (!has_norm || fits_sm90(product(operand_of(x, sums_rows, norm))) ||
      !fits_sm90(product(dense))) {
    launch_moments_of(x, norm, eps, stream);
    return {x, norm};
  }
  const Tensor normed = call.empty({x.images, x.count, x.columns}, call.dtype());
  void* const y = normed.mutable_data_ptr();
  if (norm.mean) {
    launch_layer_norm(x, static_cast<float>(eps), norm.mean, norm.rstd, norm.weight, norm.bias, y,
                      call.dtype(), stream);
  } else {
    launch_norm(x, norm, {}, {}, y, call.dtype(), stream);
  }
  return {call.images(normed, "the norm of x"), {}};
}

// a * scale, in memory.
inline Images launch_scaled(Call& call, const Images& a, const Vector& scale, cudaStream_t stream) {
  if (!scale.data) return a;
  const Tensor scaled = call.empty({a.images, a.count, a.columns}, call.dtype());
  void* const to = scaled.mutable_data_ptr();
  launch_norm(a, {nullptr, nullptr, scale, {}}, {}, {}, to, call.dtype(), stream);
  return call.images(scaled, "what is scaled");
}

// The product, by the kernel of its own that sm_90a has, where that takes the operands.
inline void multiply(const Product& p, cudaStream_t stream) {
  fits_sm90(p) ? launch_product_sm90(p, {}, {}, stream) : launch_product(p, stream);
}

// Parts of a sum, as launch(parts) makes them, and then their sum into `gradient`.
template <class Launch>
void launch_sum(Call& call, int32_t parts, const Tensor& gradient,
                std::initializer_list<int64_t> sizes, cudaStream_t stream, const Launch& launch) {
  check_shape(gradient, sizes, "a gradient");
  const DType dtype = check_result(gradient, "a gradient");
  float* const memory = call.floats(parts * gradient.numel());
  launch(memory);
  launch_sum_parts(memory, parts, gradient.numel(), gradient.mutable_data_ptr(), dtype, stream);
}

// In how many parts a sum over all images takes least time: that of blocks of 128 rows by 256
// columns, in waves, and of the parts' way to memory and back, 6,000 numbers a term on an H200.
inline int32_t splits_of(const Product& p) {
  const int64_t blocks = ceil_div(p.M, 256) * ceil_div(p.N, 128), terms = p.images * p.K;
  const int64_t most = std::min(ceil_div(4 * kBlocks, std::max<int64_t>(blocks, 1)), terms / 256);
  const auto cost = [&](int64_t splits) {
    return ceil_div(blocks * splits, kBlocks) * ceil_div(terms, splits) + splits * p.M * p.N / 6000;
  };
  int64_t best = 1;
  for (int64_t splits = 2; splits <= most; ++splits) {
    if (cost(splits) < cost(best)) best = splits;
  }
  return static_cast<int32_t>(best);
}

// p's result, (N, M), in parts of the sum over all images.
inline Product in_parts(Product p, float* parts = nullptr) {
  p.splits = splits_of(p);
  p.result = {parts, DType::kFloat32, int64_t{p.N} * p.M, p.M};
  return p;
}

inline void launch_sum_of_products(Call& call, const Product& p, const OptionalTensor& gradient,
                                   cudaStream_t stream) {
  if (!gradient) return;
  launch_sum(call, in_parts(p).splits, *gradient, {p.N, p.M}, stream,
             [&](float* parts) { multiply(in_parts(p, parts), stream); });
}

// Of a, or a * b, over all rows.
inline void launch_sum_over_rows(Call& call, const Images& a, const Images& b,
                                 const OptionalTensor& gradient, cudaStream_t stream) {
  if (!gradient) return;
  const int32_t parts = parts_of(a.images * a.count, 16, ceil_div(a.columns, 2048));
  launch_sum(call, parts, *gradient, {a.columns}, stream,
             [&](float* sums) { launch_sum_rows(a, b, sums, parts, stream); });
}

// Of a * scale, or a * scale * b, over the columns and images.
inline void launch_sum_over_columns(Call& call, const Images& a, const Vector& scale,
                                    const Images& b, const OptionalTensor& gradient,
                                    cudaStream_t stream) {
  if (!gradient) return;
  const int32_t parts = parts_of(a.images, 1, ceil_div(a.count, 8));
  launch_sum(call, parts, *gradient, {a.count}, stream,
             [&](float* sums) { launch_sum_columns(a, scale, b, sums, parts, stream); });
}

// What is wanted of the norm's adjoint, of which p has the inputs.
inline void launch_norm_gradients(Call& call, NormBackward p, const OptionalTensor& dx,
                                  const OptionalTensor& dweight, const OptionalTensor& dbias,
                                  const OptionalTensor& dscale, cudaStream_t stream) {
  const int32_t columns = p.x.columns;
  if (dx) {
    check_shape(*dx, {p.x.images, p.x.count, columns}, "the gradient of x");
    const Result to = call.result(*dx, "the gradient of x");
    p.dx = to.data, p.dtype = to.dtype;
  }
  p.parts = parts_of(p.x.images * p.x.count, 16, ceil_div(columns, 2048));
  const auto sums_for = [&](const OptionalTensor& gradient) {
    if (!gradient) return static_cast<float*>(nullptr);
    check_shape(*gradient, {columns}, "a gradient");
    check_result(*gradient, "a gradient");
    return call.floats(int64_t{p.parts} * columns);
  };
  p.dweight = sums_for(dweight), p.dbias = sums_for(dbias), p.dscale = sums_for(dscale);
  launch_norm_backward(p, stream);
  const auto add_up = [&](const float* sums, const OptionalTensor& gradient) {
    if (gradient)
      launch_sum_parts(sums, p.parts, columns, gradient->mutable_data_ptr(), dtype_of(*gradient),
                       stream);
  };
  add_up(p.dweight, dweight), add_up(p.dbias, dbias), add_up(p.dscale, dscale);
}

}  // namespace shiftmlp
