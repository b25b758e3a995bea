// The module _emulator: each function runs a kernel on tensors, in the order of a seed, or raises
// with what went wrong. Compiled with USE_CUDA, and the kernels by nvcc, the same functions run
// them on a GPU.
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cuda/product_sm90.h"
#include "../cuda/spatial_shift.h"
#include "../cuda/tokens_sm90.h"
#include "binding.h"
#include "conformance.h"
#include "hopper_example.h"

namespace shiftmlp {
namespace {

namespace py = pybind11;
using namespace py::literals;
using Arg = const Tensor&;
using Given = const OptionalTensor&;  // or None

template <class... Params>
void check_fits(const Params&... params) {
  if (!fits_sm90(params...)) throw std::invalid_argument("left to the portable path");
}

// A shift of maps, or none, by its spec.
using Spec = std::optional<std::string>;
using Grid = std::pair<int32_t, int32_t>;  // H and W
std::optional<Shift> shift_on(const Grid& grid, const Spec& spec) {
  if (!spec) return {};
  return Shift::parse(*spec).within(grid.first, grid.second);
}
const Shift* pointer(const std::optional<Shift>& shift) { return shift ? &*shift : nullptr; }

// The adjoint of "keep" if `backward`.
void spatial_shift(Arg x, Arg y, const std::string& spec, bool backward) {
  const auto [H, W, C] = std::tuple(x.size(1), x.size(2), x.size(3));
  const SpatialShiftParams p{x,
                             y,
                             x.size(0),
                             H,
                             W,
                             C,
                             x.item,
                             x.strides[0],
                             x.strides[1],
                             x.strides[2],
                             *shift_on({H, W}, spec)};
  if (backward) {
    launch_spatial_shift_keep_backward(p, x.dtype(), nullptr);
  } else {
    launch_spatial_shift(p, nullptr);
  }
}

void norm_of_rows(Arg x, Given mean, Given rstd, Given weight, Given bias, Given scale,
                  Given residual, Arg y) {
  launch_norm(x, {mean, rstd, weight, bias}, scale, residual, y, y.dtype(), nullptr);
}

void norm_backward(Arg dy, Arg x, Given mean, Given rstd, Given weight, Given bias, Given scale,
                   Arg dx, Arg dweight, Arg dbias, Arg dscale) {
  const int32_t parts = dweight.size(0);
  const NormParams norm{mean, rstd, weight, bias};
  launch_norm_backward({dy, x, norm, scale, dx, dx.dtype(), dweight, dbias, dscale, parts},
                       nullptr);
}

void bind_passes(py::module_& m) {
  kernel(
      m, "moments",
      +[](Arg x, float eps, Arg mean, Arg rstd) { launch_moments(x, eps, mean, rstd, nullptr); });
  kernel(
      m, "layer_norm", +[](Arg x, float eps, Arg mean, Arg rstd, Given weight, Given bias, Arg y) {
        launch_layer_norm(x, eps, mean, rstd, weight, bias, y, y.dtype(), nullptr);
      });
  kernel(m, "norm_of_rows", norm_of_rows);
  kernel(m, "norm_backward", norm_backward);
  kernel(
      m, "activation_backward",
      +[](Arg dy, Given scale, Arg x, const std::string& activation, Arg dx) {
        launch_activation_backward(dy, scale, x, activation_of(activation), dx, dx.dtype(),
                                   nullptr);
      });
  kernel(
      m, "sum_rows",
      +[](Arg a, Given b, Arg sums) { launch_sum_rows(a, b, sums, sums.size(0), nullptr); });
  kernel(
      m, "sum_columns", +[](Arg a, Given scale, Given b, Arg sums) {
        launch_sum_columns(a, scale, b, sums, sums.size(0), nullptr);
      });
  kernel(
      m, "sum_parts", +[](Arg parts, Arg sums) {
        launch_sum_parts(parts, parts.size(0), sums.numel(), sums, sums.dtype(), nullptr);
      });
}

// One operand: x is (images, rows, columns), or (rows, columns) for all images.
struct Side {
  Tensor x;
  Operand operand;
  std::optional<Shift> shift;
};

Product product_of(const Side& columns, const Side& rows, const Result& result, int64_t images,
                   int32_t splits) {
  const auto operand = [](const Side& side) {
    Operand operand = side.operand;
    operand.shift = pointer(side.shift);
    return operand;
  };
  const auto size = [](const Side& side, bool summed) {
    return side.x.size(side.operand.sums_rows == summed ? -2 : -1);
  };
  return {columns.x.dtype(),    operand(columns),  operand(rows),       result, images,
          size(columns, false), size(rows, false), size(columns, true), splits};
}

void bind_products(py::module_& m) {
  py::class_<Side>(m, "Operand", py::module_local())
      .def(py::init([](Arg x, bool sums_rows, const Spec& shift, const Grid& grid, Given mean,
                       Given rstd, Given weight, Given bias, Given factor) {
             const auto [H, W] = grid;
             const Operand operand{x, sums_rows, nullptr, H, W, mean, rstd, weight, bias, factor};
             return Side{x, operand, shift_on(grid, shift)};
           }),
           py::kw_only(), "x"_a, "sums_rows"_a, "shift"_a, "grid"_a, "mean"_a, "rstd"_a, "weight"_a,
           "bias"_a, "factor"_a);
  py::class_<Result>(m, "Result", py::module_local())
      .def(py::init([](Arg y, Given row_bias, Given column_bias, const std::string& activation,
                       Given slope_of, Given scale, Given factor, Given residual, Given inner) {
             const Rows rows = y;
             return Result{y,
                           y.dtype(),
                           rows.stride_b,
                           rows.stride,
                           row_bias,
                           column_bias,
                           activation_of(activation),
                           slope_of,
                           scale,
                           factor,
                           residual,
                           inner};
           }),
           py::kw_only(), "y"_a, "row_bias"_a, "column_bias"_a, "activation"_a, "slope_of"_a,
           "scale"_a, "factor"_a, "residual"_a, "inner"_a);
  kernel(
      m, "product",
      +[](const Side& columns, const Side& rows, const Result& result, int64_t images,
          int32_t splits) {
        launch_product(product_of(columns, rows, result, images, splits), nullptr);
      });
  kernel(
      m, "product_sm90",
      +[](const Side& columns, const Side& rows, const Result& result, int64_t images,
          int32_t splits, const Spec& moves, const Grid& grid) {
        const Product p = product_of(columns, rows, result, images, splits);
        const auto move = shift_on(grid, moves);
        const MoveOnWrite on_write{pointer(move), grid.first, grid.second};
        check_fits(p, on_write);
        launch_product_sm90(p, on_write, {}, nullptr);
      });
  kernel(
      m, "product_sm90_norm",
      +[](const Side& columns, const Side& rows, const Result& result, int64_t images, Arg x,
          Given mean, Given rstd, Given weight, Given dweight, Given dbias) {
        const Product p = product_of(columns, rows, result, images, 0);
        const NormAdjoint norm{x, mean, rstd, weight, dweight, dbias};
        check_fits(p, MoveOnWrite{}, norm);
        launch_product_sm90(p, {}, norm, nullptr);
      });
}

void bind_tokens(py::module_& m) {
  py::class_<TokensSm90>(m, "Tokens", py::module_local())
      .def(py::init([](Arg x, Given mean, Given rstd, Given norm_weight, Given norm_bias,
                       Given scale, Given residual, Arg y) {
             return TokensSm90{x.dtype(), x, mean,      rstd,      norm_weight, norm_bias, scale,
                               residual,  y, x.size(0), x.size(1), y.size(1),   x.size(2)};
           }),
           py::kw_only(), "x"_a, "mean"_a, "rstd"_a, "norm_weight"_a, "norm_bias"_a, "scale"_a,
           "residual"_a, "y"_a);
  kernel(
      m, "token_linear_sm90", +[](const TokensSm90& tokens, Arg weight, Given bias) {
        const TokenLinearSm90Params p{tokens, weight, weight.strides.at(0), bias};
        check_fits(p);
        launch_token_linear_sm90(p, nullptr);
      });
  m.def("token_mlp_workspace_bytes", [](const TokensSm90& tokens, Arg w1) {
    TokenMlpSm90Params p{};
    static_cast<TokensSm90&>(p) = tokens;
    p.D = w1.size(0);
    return workspace_bytes(p);
  });
  kernel(
      m, "token_mlp_sm90",
      +[](const TokensSm90& tokens, Arg w1, Given b1, Arg w2, Given b2,
          const std::string& activation, Arg workspace) {
        const TokenMlpSm90Params p{
            tokens,           w1, w1.strides.at(0),          b1,         w2,
            w2.strides.at(0), b2, activation_of(activation), w1.size(0), workspace};
        check_fits(p);
        launch_token_mlp_sm90(p, nullptr);
      });
  kernel(
      m, "token_mlp_backward_sm90",
      +[](const TokensSm90& tokens, Arg w1, Given b1, Arg w2, const std::string& activation,
          Arg workspace, Arg dy, Arg normed, Arg hidden, Arg dhidden, Arg dx, Given dnorm_weight,
          Given dnorm_bias, Given db1) {
        const TokenMlpSm90Params forward{
            tokens,           w1, w1.strides.at(0),          b1,         w2,
            w2.strides.at(0), {}, activation_of(activation), w1.size(0), workspace};
        const TokenMlpBackwardSm90Params p{forward, dy,           normed,     hidden, dhidden,
                                           dx,      dnorm_weight, dnorm_bias, db1};
        check_fits(p);
        launch_token_mlp_backward_sm90(p, nullptr);
      });
}

void bind_conformance(py::module_& m) {
  kernel(
      m, "ldmatrix", +[](Given a, Given b, Arg out, int n, bool transpose) {
        launch_ldmatrix({a, b, out}, n, transpose, nullptr);
      });
  kernel(
      m, "stmatrix", +[](Given a, Given b, Arg out, int n, bool transpose) {
        launch_stmatrix({a, b, out}, n, transpose, nullptr);
      });
  kernel(m, "mma", +[](Given a, Given b, Arg out) { launch_mma({a, b, out}, a.dtype(), nullptr); });
  kernel(m, "mma_tf32", +[](Given a, Given b, Arg out) { launch_mma_tf32({a, b, out}, nullptr); });
  kernel(
      m, "approximations",
      +[](Given a, Given b, Arg out) { launch_approximations({a, b, out}, a.size(0), nullptr); });
  kernel(
      m, "cp_async", +[](Given a, Given b, Arg out) {
        launch_cp_async({a, b, out}, a.size(1) * a.item, nullptr);
      });
  kernel(
      m, "store_global",
      +[](Given a, Given b, Arg out) { launch_store_global({a, b, out}, nullptr); });
  kernel(m, "shuffles", +[](Given a, Given b, Arg out) { launch_shuffles({a, b, out}, nullptr); });
  kernel(
      m, "tma", +[](Given a, Given b, Arg out, const std::vector<int>& at) {
        launch_tma({a, b, out}, static_cast<int>(at.size()), at.data(), nullptr);
      });
  kernel(
      m, "wgmma", +[](Given a, Given b, Arg out, bool k_major, bool a_through_registers) {
        launch_wgmma({a, b, out}, a.dtype(), b.size(0), k_major, a_through_registers, nullptr);
      });
  kernel(
      m, "turns",
      +[](Given a, Given b, Arg out) { launch_turns({a, b, out}, out.size(0) / 2, nullptr); });
  kernel(
      m, "cluster",
      +[](Given a, Given b, Arg out) { launch_cluster({a, b, out}, out.size(0), nullptr); });
  kernel(
      m, "exchange",
      +[](Given a, Given b, Arg out) { launch_exchange({a, b, out}, out.size(0), nullptr); });
}

}  // namespace
}  // namespace shiftmlp

PYBIND11_MODULE(_emulator, m) {
  using namespace shiftmlp;
#ifndef USE_CUDA
  // For kernels that are run by the adapters of their ops.
  m.def("set_seed", emulator::set_seed);
  m.def("set_capability", emulator::set_capability);
  m.def("rest", emulator::rest);
#endif
  kernel(m, "spatial_shift", spatial_shift);
  bind_passes(m);
  bind_products(m);
  bind_tokens(m);
  kernel(
      m, "hopper_example", +[](Arg x, Arg weight, Arg y, bool x_through_registers) {
        const HopperExampleParams p{x,
                                    weight,
                                    y,
                                    x.size(0),
                                    x.size(1),
                                    y.size(1),
                                    x.size(2),
                                    weight.strides.at(0),
                                    x_through_registers};
        launch_hopper_example(p, y.dtype(), nullptr);
      });
  bind_conformance(m);
}
