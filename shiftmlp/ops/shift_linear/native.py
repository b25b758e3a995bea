"""Hands shift_linear to the compiled kernels of csrc/cpu."""

import torch
from torch import Tensor

from .._math import result_dtype
from .._native import (
    FLOATS,
    attach,
    attach_backward,
    loses,
    one_image,
    recomputes,
    refuses_mixture,
)
from ..spatial_shift.native import refuses as refuses_shift
from .op import shift_linear as op


def refuses(x, weight, bias, shift, activation, scale, residual) -> str | None:
    return refuses_shift(x, shift) or refuses_mixture(x, weight, bias, scale, residual)


def shift_linear(x, weight, bias, shift, activation, scale, residual) -> Tensor:
    dtype = result_dtype(x, weight, scale, residual)
    y = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
    if y.numel():
        torch.ops.shiftmlp_cpu.shift_linear(
            one_image(y), x, weight, bias, shift, activation, scale, one_image(residual)
        )
    return y


def refuses_backward(dy, x, weight, bias, shift, *args) -> str | None:
    return refuses_shift(x, shift) or refuses_mixture(dy, x, weight, bias, *args)


def shift_linear_backward(gradients, dy, x, *args) -> None:
    dx, *rest = gradients
    torch.ops.shiftmlp_cpu.shift_linear_backward([one_image(dx), *rest], one_image(dy), x, *args)


attach(op, "cpu", shift_linear, refuses, FLOATS, loses(op))
attach_backward(op, shift_linear_backward, refuses_backward, loses(op.backward, recomputes))
