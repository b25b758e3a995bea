"""Hands token_linear to the compiled kernels of csrc/cpu and csrc/cuda."""

from torch import Tensor

from .._math import result_dtype
from .._native import PRODUCTS, attach_products, images, is_small_for_threads, loses
from .op import token_linear as op


def token_linear(
    library, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual
) -> Tensor:
    dtype = result_dtype(x, weight, scale, residual)
    y = x.new_empty((*x.shape[:-2], weight.shape[0], x.shape[-1]), dtype=dtype)
    if y.numel():
        library.token_linear(
            images(y), images(x), norm, norm_weight, norm_bias, eps, weight, bias, scale,
            images(residual),
        )  # fmt: skip
    return y


def token_linear_backward(library, gradients, dy, x, *args) -> None:
    library.token_linear_backward(gradients, images(dy), images(x), *args)


attach_products(
    op,
    token_linear,
    token_linear_backward,
    loses(op, wins=PRODUCTS),
    loses(op.backward, is_small_for_threads, PRODUCTS),
)
