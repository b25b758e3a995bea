// What tests load: each function runs a kernel and returns nullptr, or what went wrong. Compiled by
// nvcc, the same functions run the same kernels on a GPU.
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cuda/passes.h"
#include "../cuda/product_sm90.h"
#include "../cuda/spatial_shift.h"
#include "../cuda/tokens_sm90.h"
#include "conformance.h"
#include "hopper_example.h"

#ifndef __CUDACC__
#include "emulator.h"
#endif

namespace {

template <class Launch>
const char* run([[maybe_unused]] uint64_t seed, const Launch& launch) {
  static std::string message;
  try {
#ifdef __CUDACC__
    launch();
    cudaError_t status = cudaGetLastError();
    if (status == cudaSuccess) status = cudaDeviceSynchronize();
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
#else
    emulator::set_seed(seed);
    launch();
#endif
    return nullptr;
  } catch (const std::exception& error) {
    return (message = error.what()).c_str();
  }
}

}  // namespace

extern "C" {

#ifndef __CUDACC__
// For kernels that are run by the adapters of their ops.
void set_seed(uint64_t seed) { emulator::set_seed(seed); }
void set_capability(int capability) { emulator::set_capability(capability); }
#endif

// `sizes`: B, H, W, C, bytes of an element. Contiguous; the adjoint of "keep" if `backward`.
const char* spatial_shift(uint64_t seed, const void* x, void* y, const int32_t* sizes,
                          const char* spec, bool backward, shiftmlp::DType dtype) {
  return run(seed, [&] {
    const auto [H, W, C] = std::tuple(sizes[1], sizes[2], sizes[3]);
    const auto shift = shiftmlp::Shift::parse(spec).within(H, W);
    const shiftmlp::SpatialShiftParams p{
        x, y, sizes[0], H, W, C, sizes[4], int64_t{H} * W * C, int64_t{W} * C, C, shift};
    if (backward) {
      shiftmlp::launch_spatial_shift_keep_backward(p, dtype, nullptr);
    } else {
      shiftmlp::launch_spatial_shift(p, nullptr);
    }
  });
}

const char* moments(uint64_t seed, const shiftmlp::Images& x, float eps, float* mean, float* rstd) {
  return run(seed, [&] { shiftmlp::launch_moments(x, eps, mean, rstd, nullptr); });
}

const char* layer_norm(uint64_t seed, const shiftmlp::Images& x, float eps, float* mean,
                       float* rstd, const shiftmlp::Vector& weight, const shiftmlp::Vector& bias,
                       void* y, shiftmlp::DType dtype) {
  return run(seed, [&] {
    shiftmlp::launch_layer_norm(x, eps, mean, rstd, weight, bias, y, dtype, nullptr);
  });
}

const char* norm_of_rows(uint64_t seed, const shiftmlp::Images& x, const shiftmlp::NormParams& norm,
                         const shiftmlp::Vector& scale, const shiftmlp::Images& residual, void* y,
                         shiftmlp::DType dtype) {
  return run(seed, [&] { shiftmlp::launch_norm(x, norm, scale, residual, y, dtype, nullptr); });
}

const char* norm_backward(uint64_t seed, const shiftmlp::NormBackward& p) {
  return run(seed, [&] { shiftmlp::launch_norm_backward(p, nullptr); });
}

const char* activation_backward(uint64_t seed, const shiftmlp::Images& dy,
                                const shiftmlp::Vector& scale, const shiftmlp::Images& x,
                                shiftmlp::Activation activation, void* dx, shiftmlp::DType dtype) {
  return run(seed, [&] {
    shiftmlp::launch_activation_backward(dy, scale, x, activation, dx, dtype, nullptr);
  });
}

const char* sum_rows(uint64_t seed, const shiftmlp::Images& a, const shiftmlp::Images& b,
                     float* sums, int32_t parts) {
  return run(seed, [&] { shiftmlp::launch_sum_rows(a, b, sums, parts, nullptr); });
}

const char* sum_columns(uint64_t seed, const shiftmlp::Images& a, const shiftmlp::Vector& scale,
                        const shiftmlp::Images& b, float* sums, int32_t parts) {
  return run(seed, [&] { shiftmlp::launch_sum_columns(a, scale, b, sums, parts, nullptr); });
}

const char* sum_parts(uint64_t seed, const float* parts, int32_t count, int64_t n, void* sums,
                      shiftmlp::DType dtype) {
  return run(seed, [&] { shiftmlp::launch_sum_parts(parts, count, n, sums, dtype, nullptr); });
}

// Of each operand the spec of its shift, or nullptr.
const char* product(uint64_t seed, shiftmlp::Product p, const char* columns_spec,
                    const char* rows_spec) {
  return run(seed, [&] {
    shiftmlp::Shift shifts[2];
    const auto set = [](shiftmlp::Operand& operand, const char* spec, shiftmlp::Shift& shift) {
      if (spec == nullptr) return;
      shift = shiftmlp::Shift::parse(spec).within(operand.H, operand.W);
      operand.shift = &shift;
    };
    set(p.columns, columns_spec, shifts[0]);
    set(p.rows, rows_spec, shifts[1]);
    shiftmlp::launch_product(p, nullptr);
  });
}

// The same of sm_90a, whose result moves by `moves`, or not if that is nullptr.
const char* product_sm90(uint64_t seed, shiftmlp::Product p, const char* rows_spec,
                         const char* moves, int H, int W) {
  return run(seed, [&] {
    shiftmlp::Shift shift, move;
    if (rows_spec) {
      shift = shiftmlp::Shift::parse(rows_spec).within(p.rows.H, p.rows.W);
      p.rows.shift = &shift;
    }
    if (moves) move = shiftmlp::Shift::parse(moves).within(H, W);
    const shiftmlp::MoveOnWrite on_write{moves ? &move : nullptr, H, W};
    if (!shiftmlp::fits_sm90(p, on_write)) throw std::invalid_argument("left to the portable path");
    shiftmlp::launch_product_sm90(p, on_write, {}, nullptr);
  });
}

// The same that ends in a norm's adjoint.
const char* product_sm90_norm(uint64_t seed, const shiftmlp::Product& p,
                              const shiftmlp::NormAdjoint& norm) {
  return run(seed, [&] {
    if (!shiftmlp::fits_sm90(p, {}, norm)) throw std::invalid_argument("left to the portable path");
    shiftmlp::launch_product_sm90(p, {}, norm, nullptr);
  });
}

const char* token_linear_sm90(uint64_t seed, const shiftmlp::TokenLinearSm90Params& p) {
  return run(seed, [&] {
    if (!shiftmlp::fits_sm90(p)) throw std::invalid_argument("left to the portable path");
    shiftmlp::launch_token_linear_sm90(p, nullptr);
  });
}

int64_t token_mlp_workspace_bytes(const shiftmlp::TokenMlpSm90Params& p) {
  return shiftmlp::workspace_bytes(p);
}

const char* token_mlp_sm90(uint64_t seed, const shiftmlp::TokenMlpSm90Params& p) {
  return run(seed, [&] {
    if (!shiftmlp::fits_sm90(p)) throw std::invalid_argument("left to the portable path");
    shiftmlp::launch_token_mlp_sm90(p, nullptr);
  });
}

const char* hopper_example(uint64_t seed, const shiftmlp::HopperExampleParams& p,
                           shiftmlp::DType dtype) {
  return run(seed, [&] { shiftmlp::launch_hopper_example(p, dtype, nullptr); });
}

const char* conform_ldmatrix(uint64_t seed, const shiftmlp::Conformance& p, int count,
                             bool transpose) {
  return run(seed, [&] { shiftmlp::launch_ldmatrix(p, count, transpose, nullptr); });
}

const char* conform_stmatrix(uint64_t seed, const shiftmlp::Conformance& p, int count,
                             bool transpose) {
  return run(seed, [&] { shiftmlp::launch_stmatrix(p, count, transpose, nullptr); });
}

const char* conform_mma_tf32(uint64_t seed, const shiftmlp::Conformance& p) {
  return run(seed, [&] { shiftmlp::launch_mma_tf32(p, nullptr); });
}

const char* conform_approximations(uint64_t seed, const shiftmlp::Conformance& p, int n) {
  return run(seed, [&] { shiftmlp::launch_approximations(p, n, nullptr); });
}

const char* conform_warp(uint64_t seed, const shiftmlp::Conformance& p) {
  return run(seed, [&] { shiftmlp::launch_warp(p, nullptr); });
}

const char* conform_tma(uint64_t seed, const shiftmlp::Conformance& p, int rank, const int* at) {
  return run(seed, [&] { shiftmlp::launch_tma(p, rank, at, nullptr); });
}

const char* conform_wgmma(uint64_t seed, const shiftmlp::Conformance& p, int n, bool k_major,
                          bool a_through_registers) {
  return run(seed, [&] { shiftmlp::launch_wgmma(p, n, k_major, a_through_registers, nullptr); });
}

const char* conform_turns(uint64_t seed, const shiftmlp::Conformance& p, int rounds) {
  return run(seed, [&] { shiftmlp::launch_turns(p, rounds, nullptr); });
}

const char* conform_cluster(uint64_t seed, const shiftmlp::Conformance& p, int clusters) {
  return run(seed, [&] { shiftmlp::launch_cluster(p, clusters, nullptr); });
}

const char* conform_exchange(uint64_t seed, const shiftmlp::Conformance& p, int clusters) {
  return run(seed, [&] { shiftmlp::launch_exchange(p, clusters, nullptr); });
}

}  // extern "C"
