from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(op.shift_mlp, "shiftmlp.ops.shift_mlp.triton_kernels", _triton.PRODUCTS)
