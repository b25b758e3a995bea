"""Hands shift_mlp to the compiled kernels of csrc/cpu and csrc/cuda."""

from torch import Tensor

from .._math import result_dtype
from .._native import WITH_AMX, attach_products, lacks_amx, loses, one_image, recomputes
from ..spatial_shift.native import refusal_of
from .op import shift_mlp as op


def shift_mlp(
    library, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
) -> Tensor:  # fmt: skip
    dtype = result_dtype(x, w2, scale, residual, post_norm, post_norm_weight)
    y = x.new_empty((*x.shape[:-1], w2.shape[0]), dtype=dtype)
    if y.numel():
        library.shift_mlp(
            one_image(y), one_image(x), *x.shape[-3:-1], norm, norm_weight, norm_bias, eps, w1, b1,
            w2, b2, shift, activation, post_norm, post_norm_weight, post_norm_bias, post_eps, scale,
            one_image(residual),
        )  # fmt: skip
    return y


def shift_mlp_backward(library, gradients, dy, x, *args) -> None:
    dx, *rest = gradients
    library.shift_mlp_backward(
        [one_image(dx), *rest], one_image(dy), one_image(x), *x.shape[-3:-1], *args
    )


attach_products(
    op, shift_mlp, shift_mlp_backward,
    loses(op, lacks_amx, WITH_AMX), loses(op.backward, recomputes), refusal_of,
)  # fmt: skip
