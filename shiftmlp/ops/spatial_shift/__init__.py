from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(op.spatial_shift, "shiftmlp.ops.spatial_shift.triton_kernels")
