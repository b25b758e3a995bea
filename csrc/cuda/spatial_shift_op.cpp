// Tensors to SpatialShiftParams.
#include "../tensors.h"
#include "launch.h"
#include "spatial_shift.h"

namespace shiftmlp {
namespace {

SpatialShiftParams params_of(const Map& x, const Tensor& y, const Shift& shift) {
  return {x.x.const_data_ptr(),
          y.mutable_data_ptr(),
          x.B,
          x.H,
          x.W,
          x.C,
          static_cast<int32_t>(x.x.element_size()),
          x.x.stride(0),
          x.x.stride(1),
          x.x.stride(2),
          shift.within(x.H, x.W)};
}

template <class Launch>
Tensor run(const Tensor& x, const Shift& shift, const Launch& launch) {
  Tensor y = empty_contiguous(x);
  const Map map(x);
  if (map.empty()) return y;
  on_stream_of(x, [&](cudaStream_t stream) { launch(params_of(map, y, shift), stream); });
  return y;
}

Tensor spatial_shift(const Tensor& x, const std::string& shift) {
  return run(x, Shift::parse(shift), launch_spatial_shift);
}

Tensor spatial_shift_backward(const Tensor& dy, const std::string& spec) {
  const Shift shift = Shift::parse(spec);
  if (shift.border != Border::kKeep) return run(dy, shift.reversed(), launch_spatial_shift);
  const DType dtype = dtype_of(dy);
  return run(dy, shift, [dtype](const SpatialShiftParams& p, cudaStream_t stream) {
    launch_spatial_shift_keep_backward(p, dtype, stream);
  });
}

}  // namespace
}  // namespace shiftmlp

SHIFTMLP_ADAPTERS(m) {
  m.impl("spatial_shift", TORCH_BOX(&shiftmlp::spatial_shift));
  m.impl("spatial_shift_backward", TORCH_BOX(&shiftmlp::spatial_shift_backward));
}
