// What the module _emulator is made with: PyTorch's tensors as the kernels' parameters take them,
// without its headers, and functions that run a kernel.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/passes.h"
#ifndef USE_CUDA
#include "emulator.h"
#endif

namespace shiftmlp {

// Its memory lives as long as Python keeps it.
struct Tensor {
  void* data{};
  std::string type;  // "torch.bfloat16"
  int32_t item{};    // bytes of an element
  std::vector<int64_t> sizes, strides;

  DType dtype() const {
    return static_cast<DType>(
        index_of(type, {"torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"}));
  }
  int64_t numel() const {
    return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  }
  int32_t size(int dim) const {  // from the last one if negative, as in Python
    return static_cast<int32_t>(sizes.at(dim < 0 ? sizes.size() + dim : dim));
  }

  template <class T>
  operator T*() const {
    return static_cast<T*>(data);
  }
  operator Vector() const { return data ? Vector{data, dtype()} : Vector{}; }
  // Of (images, rows, columns), or of (rows, columns), which all images share.
  operator Rows() const {
    const auto n = strides.size();
    return n < 2 ? Rows{} : Rows{data, n < 3 ? 0 : strides[n - 3], strides[n - 2]};
  }
  operator Images() const {
    return sizes.empty() ? Images{} : Images{*this, dtype(), sizes.at(0), size(1), size(2)};
  }

  static int index_of(const std::string& name, std::initializer_list<const char*> names) {
    const auto* const found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw std::invalid_argument("no kernel takes " + name);
    return static_cast<int>(found - names.begin());
  }
};

// Or None, which has no data.
struct OptionalTensor : Tensor {};

inline Activation activation_of(const std::string& name) {
  return static_cast<Activation>(Tensor::index_of(name, {"none", "gelu", "gelu_tanh", "relu"}));
}

}  // namespace shiftmlp

namespace pybind11::detail {

template <class T, bool kNoneToo>
struct tensor_caster {
  PYBIND11_TYPE_CASTER(T, const_name("torch.Tensor"));

  bool load(handle given, bool) {
    if (given.is_none()) return kNoneToo;
    if (!hasattr(given, "data_ptr")) return false;
    value.data = reinterpret_cast<void*>(given.attr("data_ptr")().cast<uintptr_t>());
    value.type = str(given.attr("dtype"));
    value.item = given.attr("itemsize").cast<int32_t>();
    value.sizes = given.attr("shape").cast<std::vector<int64_t>>();
    value.strides = given.attr("stride")().cast<std::vector<int64_t>>();
    return true;
  }
};

template <>
struct type_caster<shiftmlp::Tensor> : tensor_caster<shiftmlp::Tensor, false> {};
template <>
struct type_caster<shiftmlp::OptionalTensor> : tensor_caster<shiftmlp::OptionalTensor, true> {};

}  // namespace pybind11::detail

namespace shiftmlp {

// Serves `launch` by this name, with a seed before its arguments.
template <class... Args>
void kernel(pybind11::module_& m, const char* name, void (*launch)(Args...)) {
  m.def(name, [launch]([[maybe_unused]] uint64_t seed, const Args&... args) {
    try {
#ifdef USE_CUDA
      launch(args...);
      cudaError_t status = cudaGetLastError();
      if (status == cudaSuccess) status = cudaDeviceSynchronize();
      if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
#else
      emulator::set_seed(seed);
      launch(args...);
#endif
    } catch (const std::exception& error) {
      throw std::runtime_error("seed " + std::to_string(seed) + ": " + error.what());
    }
  });
}

}  // namespace shiftmlp
