"""The contract of token_gate: schema, output metadata, products. No arithmetic here."""

import torch

from .._differentiable import DifferentiableOp
from .._flops import macs


def fake(u, v, norm, norm_weight, norm_bias, eps, weight, bias):
    return u.new_empty(u.shape, dtype=torch.promote_types(u.dtype, weight.dtype))


token_gate = DifferentiableOp(
    "token_gate(Tensor u, Tensor v, str norm, Tensor? norm_weight, Tensor? norm_bias, float eps,"
    " Tensor weight, Tensor? bias, str backend) -> Tensor",
    fake,
    function="TokenGate",
    gemms=lambda v, weight, **_: [("weight", macs(v, weight), {"v", "norm_weight", "norm_bias"})],
    batched=("u", "v"),
    autocast=("weight", "bias"),
)
TokenGate = token_gate.function
