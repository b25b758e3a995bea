"""shift_mlp in Triton: two GEMMs, of which the first stores the hidden where the shift moves it."""

from ...shift import Shift
from .. import _triton_mlp
from ..spatial_shift import triton_kernels as spatial_shift
from .op import shift_mlp as op


def refuses(*inputs) -> str | None:
    given = dict(zip(op.names, inputs, strict=False))
    return _triton_mlp.refuses(given) or spatial_shift.refuses(given["x"], given["shift"])


def refuses_backward(*inputs) -> str | None:
    given = dict(zip(op.backward.names, inputs, strict=False))
    return _triton_mlp.refuses_backward(given) or spatial_shift.refuses(given["x"], given["shift"])


# The MLP with a shift takes its arguments in the order of this op's schema.
shift_mlp, shift_mlp_backward = _triton_mlp.mlp, _triton_mlp.mlp_backward

S2 = Shift.S2.spec
COMPILE_CASES = {
    "deep bf16 14x14x384": (shift_mlp, _triton_mlp.case((128, 14, 14, 384), 384, S2)),
    "deep post-norm bf16 14x14x384": (
        shift_mlp, _triton_mlp.case((128, 14, 14, 384), 384, S2, pre=False)
    ),
    "cycle(7, w) bf16 14x14x320": (
        shift_mlp, _triton_mlp.case((128, 14, 14, 320), 320, Shift.cycle(7, "w").spec)
    ),
    "deep backward bf16 14x14x384": (
        shift_mlp_backward, _triton_mlp.backward_case((128, 14, 14, 384), 384, S2)
    ),
    "wide post-norm backward bf16 14x14x768": (
        shift_mlp_backward, _triton_mlp.backward_case((128, 14, 14, 768), 768, S2, pre=False)
    ),
}  # fmt: skip
