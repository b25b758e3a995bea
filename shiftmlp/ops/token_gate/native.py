"""Hands token_gate to the compiled kernels of csrc/cpu."""

import torch
from torch import Tensor

from .._native import (
    FLOATS,
    attach,
    attach_backward,
    images,
    loses,
    recomputes,
    refuses_mixture,
)
from .op import token_gate as op


def token_gate(u, v, norm, norm_weight, norm_bias, eps, weight, bias) -> Tensor:
    y = u.new_empty(u.shape, dtype=torch.promote_types(u.dtype, weight.dtype))
    if y.numel():
        torch.ops.shiftmlp_cpu.token_gate(
            images(y), images(u), images(v), norm, norm_weight, norm_bias, eps, weight, bias
        )
    return y


def token_gate_backward(gradients, dy, u, v, *args) -> None:
    torch.ops.shiftmlp_cpu.token_gate_backward(gradients, images(dy), images(u), images(v), *args)


attach(op, "cpu", token_gate, refuses_mixture, FLOATS, loses(op))
attach_backward(op, token_gate_backward, refuses_mixture, loses(op.backward, recomputes))
