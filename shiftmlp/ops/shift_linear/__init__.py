from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(op.shift_linear, "shiftmlp.ops.shift_linear.triton_kernels", _triton.PRODUCTS)
