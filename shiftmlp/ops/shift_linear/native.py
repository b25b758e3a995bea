"""Hands shift_linear to the compiled kernels of csrc/cpu and csrc/cuda."""

from torch import Tensor

from .._math import result_dtype
from .._native import WITH_AMX, attach_products, lacks_amx, loses, one_image, recomputes
from ..spatial_shift.native import refusal_of
from .op import shift_linear as op


def shift_linear(library, x, weight, bias, shift, activation, scale, residual) -> Tensor:
    dtype = result_dtype(x, weight, scale, residual)
    y = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
    if y.numel():
        library.shift_linear(
            one_image(y), x, weight, bias, shift, activation, scale, one_image(residual)
        )
    return y


def shift_linear_backward(library, gradients, dy, x, *args) -> None:
    dx, *rest = gradients
    library.shift_linear_backward([one_image(dx), *rest], one_image(dy), x, *args)


attach_products(
    op, shift_linear, shift_linear_backward,
    loses(op, lacks_amx, WITH_AMX), loses(op.backward, recomputes), refusal_of,
)  # fmt: skip
