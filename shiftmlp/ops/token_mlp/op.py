"""The contract of token_mlp: schema, output metadata, products. No arithmetic here."""

from .._differentiable import DifferentiableOp
from .._flops import macs
from .._math import result_dtype


def fake(x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, residual):
    dtype = result_dtype(x, w2, scale, residual)
    return x.new_empty((*x.shape[:-2], w2.shape[0], x.shape[-1]), dtype=dtype)


def gemms(x, w1, w2, **_):
    before = {"x", "norm_weight", "norm_bias"}
    hidden = (*x[:-2], w1[0], x[-1])
    return [("w1", macs(x, w1), before), ("w2", macs(hidden, w2), before | {"w1", "b1"})]


token_mlp = DifferentiableOp(
    "token_mlp(Tensor x, str norm, Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor w1,"
    " Tensor? b1, Tensor w2, Tensor? b2, str activation, Tensor? scale, Tensor? residual,"
    " str backend) -> Tensor",
    fake,
    function="TokenMlp",
    gemms=gemms,
    batched=("x", "residual"),
    autocast=("w1", "b1", "w2", "b2"),
)
TokenMlp = token_mlp.function
