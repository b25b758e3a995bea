"""Hands token_mlp to the compiled kernels of csrc/cpu and csrc/cuda."""

from torch import Tensor

from .._math import result_dtype
from .._native import (
    PRODUCTS,
    WITH_AMX,
    attach_products,
    either,
    images,
    is_small,
    lacks_amx,
    loses,
)
from .op import token_mlp as op


def token_mlp(
    library, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, residual
) -> Tensor:
    dtype = result_dtype(x, w2, scale, residual)
    y = x.new_empty((*x.shape[:-2], w2.shape[0], x.shape[-1]), dtype=dtype)
    if y.numel():
        library.token_mlp(
            images(y), images(x), norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
            scale, images(residual),
        )  # fmt: skip
    return y


def token_mlp_backward(library, gradients, dy, x, *args) -> None:
    library.token_mlp_backward(gradients, images(dy), images(x), *args)


attach_products(
    op, token_mlp, token_mlp_backward,
    loses(op, wins=PRODUCTS), loses(op.backward, either(is_small, lacks_amx), WITH_AMX),
)  # fmt: skip
