// What the adapters ask of their arguments before a kernel may touch memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "activation.h"
#include "dispatch.h"
#include "image.h"

namespace shiftmlp {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Gradients = std::vector<OptionalTensor>;  // null where none is wanted

struct NormArgs {
  const std::string& kind;
  const OptionalTensor &weight, &bias;
  double eps;
};

// A (..., H, W, C) tensor as (B, H, W, C) with C dense. The one place where a layout is copied.
struct Map {
  Tensor x;
  int64_t B;
  int32_t H, W, C;

  explicit Map(const Tensor& tensor) : x(tensor) {
    STD_TORCH_CHECK(x.dim() >= 3, "x must be (..., H, W, C), got ", x.dim(), " dimensions");
    const int64_t first = x.dim() - 3;
    H = side(first), W = side(first + 1), C = side(first + 2);
    if (empty()) return;
    B = x.numel() / H / W / C;
    if (first != 1) x = torch::stable::reshape(x, {B, H, W, C});
    if (x.stride(3) != 1 && C != 1) x = torch::stable::contiguous(x);
  }

  bool empty() const { return x.numel() == 0; }

 private:
  int32_t side(int64_t dim) const {
    const int64_t size = x.size(dim);
    STD_TORCH_CHECK(size <= kMaxSide, "H, W and C must be at most ", kMaxSide, ", got ", size);
    return static_cast<int32_t>(size);
  }
};

inline Tensor empty_contiguous(const Tensor& like) {
  return torch::stable::new_empty(like, like.sizes());
}

inline DType dtype_of(const Tensor& x, const char* name = "x") {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

inline void check_shape(const Tensor& x, std::initializer_list<int64_t> wanted, const char* name) {
  bool same = x.dim() == static_cast<int64_t>(wanted.size());
  for (size_t i = 0; same && i < wanted.size(); ++i) same = x.size(i) == wanted.begin()[i];
  if (same) return;
  const auto listed = [](const auto& sizes) {
    std::string all;
    for (int64_t size : sizes) all += (all.empty() ? "" : ", ") + std::to_string(size);
    return "(" + all + ")";
  };
  STD_TORCH_CHECK(false, name, " must be ", listed(wanted), ", got ", listed(x.sizes()));
}

inline Activation activation_of(const std::string& name) {
  constexpr std::string_view names[] = {"none", "gelu", "gelu_tanh", "relu"};  // Activation's order
  const auto* found = std::find(std::begin(names), std::end(names), name);
  STD_TORCH_CHECK(found != std::end(names), "no activation ", name);
  return static_cast<Activation>(found - names);
}

}  // namespace shiftmlp
