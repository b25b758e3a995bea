from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(op.token_linear, "shiftmlp.ops.token_linear.triton_kernels", _triton.PRODUCTS)
