"""Hands token_linear to the compiled kernels of csrc/cpu."""

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
from .op import token_linear as op


def token_linear(x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual) -> Tensor:
    dtype = result_dtype(x, weight, scale, residual)
    y = x.new_empty((*x.shape[:-2], weight.shape[0], x.shape[-1]), dtype=dtype)
    if y.numel():
        torch.ops.shiftmlp_cpu.token_linear(
            images(y), images(x), norm, norm_weight, norm_bias, eps, weight, bias, scale,
            images(residual),
        )  # fmt: skip
    return y


def token_linear_backward(gradients, dy, x, *args) -> None:
    torch.ops.shiftmlp_cpu.token_linear_backward(gradients, images(dy), images(x), *args)


attach(op, "cpu", token_linear, refuses_mixture, FLOATS, loses(op))
attach_backward(op, token_linear_backward, refuses_mixture, loses(op.backward, is_small))
