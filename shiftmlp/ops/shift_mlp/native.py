"""Hands shift_mlp to the compiled kernels of csrc/cpu."""

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
from .op import shift_mlp as op


def refuses(x, *args) -> str | None:
    return refuses_shift(x, args[8]) or refuses_mixture(x, *args)


def shift_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
) -> Tensor:  # fmt: skip
    dtype = result_dtype(x, w2, scale, residual, post_norm, post_norm_weight)
    y = x.new_empty((*x.shape[:-1], w2.shape[0]), dtype=dtype)
    if y.numel():
        torch.ops.shiftmlp_cpu.shift_mlp(
            one_image(y), one_image(x), *x.shape[-3:-1], norm, norm_weight, norm_bias, eps, w1, b1,
            w2, b2, shift, activation, post_norm, post_norm_weight, post_norm_bias, post_eps, scale,
            one_image(residual),
        )  # fmt: skip
    return y


def refuses_backward(dy, x, *args) -> str | None:
    return refuses_shift(x, args[8]) or refuses_mixture(dy, x, *args)


def shift_mlp_backward(gradients, dy, x, *args) -> None:
    dx, *rest = gradients
    torch.ops.shiftmlp_cpu.shift_mlp_backward(
        [one_image(dx), *rest], one_image(dy), one_image(x), *x.shape[-3:-1], *args
    )


attach(op, "cpu", shift_mlp, refuses, FLOATS, loses(op))
attach_backward(op, shift_mlp_backward, refuses_backward, loses(op.backward, recomputes))
