"""Hands channel_mlp to the compiled kernels of csrc/cpu and csrc/cuda."""

from torch import Tensor

from .._math import result_dtype
from .._native import WITH_AMX, attach_products, lacks_amx, loses, one_image, recomputes
from .op import channel_mlp as op


def channel_mlp(
    library, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
) -> Tensor:  # fmt: skip
    dtype = result_dtype(x, w2, scale, residual, post_norm, post_norm_weight)
    y = x.new_empty((*x.shape[:-1], w2.shape[0]), dtype=dtype)
    if y.numel():
        library.channel_mlp(
            one_image(y), one_image(x), norm, norm_weight, norm_bias, eps, w1, b1, w2, b2,
            activation, post_norm, post_norm_weight, post_norm_bias, post_eps, scale,
            one_image(residual),
        )  # fmt: skip
    return y


def channel_mlp_backward(library, gradients, dy, x, *args) -> None:
    dx, *rest = gradients
    library.channel_mlp_backward([one_image(dx), *rest], one_image(dy), one_image(x), *args)


attach_products(
    op, channel_mlp, channel_mlp_backward,
    loses(op, lacks_amx, WITH_AMX), loses(op.backward, recomputes),
)  # fmt: skip
