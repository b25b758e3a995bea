"""The contract of shift_mlp: schema, output metadata, products. No arithmetic here."""

from .._differentiable import DifferentiableOp
from .._flops import macs
from .._math import result_dtype


def fake(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
):  # fmt: skip
    dtype = result_dtype(x, w2, scale, residual, post_norm, post_norm_weight)
    return x.new_empty((*x.shape[:-1], w2.shape[0]), dtype=dtype)


def gemms(x, w1, w2, **_):
    before = {"x", "norm_weight", "norm_bias"}
    hidden = (*x[:-1], w1[0])
    return [("w1", macs(x, w1), before), ("w2", macs(hidden, w2), before | {"w1", "b1"})]


shift_mlp = DifferentiableOp(
    "shift_mlp(Tensor x, str norm, Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor w1,"
    " Tensor? b1, Tensor w2, Tensor? b2, str shift, str activation, str post_norm,"
    " Tensor? post_norm_weight, Tensor? post_norm_bias, float post_eps, Tensor? scale,"
    " Tensor? residual, str backend) -> Tensor",
    fake,
    function="ShiftMlp",
    gemms=gemms,
    batched=("x", "residual"),
    autocast=("w1", "b1", "w2", "b2"),
)
ShiftMlp = shift_mlp.function
