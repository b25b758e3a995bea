"""The contract of spatial_shift: schema, output metadata. It only moves data."""

from .._differentiable import DifferentiableOp

spatial_shift = DifferentiableOp(
    "spatial_shift(Tensor x, str shift, str backend) -> Tensor",
    lambda x, shift: x.new_empty(x.shape),
    function="SpatialShift",
    gemms=lambda **given: [],
    batched=("x",),
    forgets=("x",),
    fake_backward=lambda dy, shift, needs: [dy.new_empty(dy.shape)],
)
SpatialShift = spatial_shift.function


def shifted(x, shift):
    """In the reference's place where PyTorch differentiates what is around it."""
    return spatial_shift.call(x, shift.spec, "auto")
