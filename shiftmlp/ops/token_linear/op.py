"""The contract of token_linear: schema, output metadata, products. No arithmetic here."""

from .._differentiable import DifferentiableOp
from .._flops import macs
from .._math import result_dtype


def fake(x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual):
    dtype = result_dtype(x, weight, scale, residual)
    return x.new_empty((*x.shape[:-2], weight.shape[0], x.shape[-1]), dtype=dtype)


token_linear = DifferentiableOp(
    "token_linear(Tensor x, str norm, Tensor? norm_weight, Tensor? norm_bias, float eps,"
    " Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, str backend) -> Tensor",
    fake,
    function="TokenLinear",
    gemms=lambda x, weight, **_: [("weight", macs(x, weight), {"x", "norm_weight", "norm_bias"})],
    batched=("x", "residual"),
    autocast=("weight", "bias"),
)
TokenLinear = token_linear.function
