"""Hands token_mlp to the compiled kernels of csrc/cpu."""

import torch
from torch import Tensor

from .._math import result_dtype
from .._native import (
    FLOATS,
    attach,
    attach_backward,
    images,
    is_small,
    loses,
    refuses_mixture,
)
from .op import token_mlp as op


def token_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, residual
) -> Tensor:
    dtype = result_dtype(x, w2, scale, residual)
    y = x.new_empty((*x.shape[:-2], w2.shape[0], x.shape[-1]), dtype=dtype)
    if y.numel():
        torch.ops.shiftmlp_cpu.token_mlp(
            images(y), images(x), norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
            scale, images(residual),
        )  # fmt: skip
    return y


def token_mlp_backward(gradients, dy, x, *args) -> None:
    torch.ops.shiftmlp_cpu.token_mlp_backward(gradients, images(dy), images(x), *args)


attach(op, "cpu", token_mlp, refuses_mixture, FLOATS, loses(op))
attach_backward(op, token_mlp_backward, refuses_mixture, loses(op.backward, is_small))
