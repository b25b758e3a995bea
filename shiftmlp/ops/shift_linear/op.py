"""The contract of shift_linear: schema, output metadata, products. No arithmetic here."""

from .._differentiable import DifferentiableOp
from .._flops import macs
from .._math import result_dtype


def fake(x, weight, bias, shift, activation, scale, residual):
    dtype = result_dtype(x, weight, scale, residual)
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


shift_linear = DifferentiableOp(
    "shift_linear(Tensor x, Tensor weight, Tensor? bias, str shift, str activation, Tensor? scale,"
    " Tensor? residual, str backend) -> Tensor",
    fake,
    function="ShiftLinear",
    gemms=lambda x, weight, **_: [("weight", macs(x, weight), {"x"})],
    batched=("x", "residual"),
    autocast=("weight", "bias"),
)
ShiftLinear = shift_linear.function
