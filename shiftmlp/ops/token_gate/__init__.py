from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(op.token_gate, "shiftmlp.ops.token_gate.triton_kernels", _triton.PRODUCTS)
