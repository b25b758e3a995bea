// The shift of a map (..., H, W, C) and its adjoint, both dense and new.
#pragma once

#include <string>

#include "../tensors.h"

namespace shiftmlp {

Tensor spatial_shift(const Tensor& x, const std::string& shift);
Tensor spatial_shift_backward(const Tensor& dy, const std::string& shift);

}  // namespace shiftmlp
