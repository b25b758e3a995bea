// The activations. No function: units for one instruction set include this.
#pragma once

#include <cstdint>

namespace shiftmlp {

enum class Activation : int32_t { kNone, kGelu, kGeluTanh, kRelu };

}  // namespace shiftmlp
