// A value known at run time becomes a template argument of a generic lambda. No torch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "dtype.h"

namespace shiftmlp {

template <class T>
struct Type {
  using type = T;
};

// Raw bits of N bytes: what a kernel that only moves data works on.
struct alignas(16) Bits128 {
  uint64_t low, high;
};
template <int64_t N>
using Bits = std::conditional_t<
    N == 16, Bits128,
    std::conditional_t<
        N == 8, uint64_t,
        std::conditional_t<N == 4, uint32_t, std::conditional_t<N == 2, uint16_t, uint8_t>>>>;

// with_int<64, 128>(n, [](auto n) { constexpr int64_t N = n; ... })
template <int64_t... kValues, class F>
void with_int(int64_t n, F&& f) {
  const bool found =
      ((n == kValues && (f(std::integral_constant<int64_t, kValues>{}), true)) || ...);
  if (!found) throw std::invalid_argument("no kernel is compiled for this number");
}

// with_type<Half, BFloat16>(dtype, [](auto type) { using T = typename decltype(type)::type; ... })
template <class Half, class BFloat16, class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Type<Half>{});
    case DType::kBFloat16:
      return f(Type<BFloat16>{});
    case DType::kFloat32:
      return f(Type<float>{});
    case DType::kFloat64:
      return f(Type<double>{});
  }
}

}  // namespace shiftmlp
