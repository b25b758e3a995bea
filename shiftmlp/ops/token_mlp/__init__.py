from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(op.token_mlp, "shiftmlp.ops.token_mlp.triton_kernels", _triton.PRODUCTS)
