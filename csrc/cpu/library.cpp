// Every native CPU kernel, a line each. The public ops are those of torch.ops.shiftmlp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(shiftmlp_cpu, m) {
  m.def("spatial_shift(Tensor x, str shift) -> Tensor");
  m.def("spatial_shift_backward(Tensor dy, str shift) -> Tensor");
}
