// The element types of the tensors that kernels read and write. No torch.
#pragma once

#include <cstdint>

namespace shiftmlp {

enum class DType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

}  // namespace shiftmlp
