from .. import _triton
from . import native, op, reference  # noqa: F401

_triton.attach(
    op.channel_mlp,
    "shiftmlp.ops.channel_mlp.triton_kernels",
    _triton.PRODUCTS,
    slower=_triton.not_measured,
)
