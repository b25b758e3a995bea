// The library of native CPU kernels. The public ops are those of torch.ops.shiftmlp.
#include "../schemas.h"

STABLE_TORCH_LIBRARY(shiftmlp_cpu, m) { define_kernels(m); }
