"""Hands token_gate to the compiled kernels of csrc/cpu and csrc/cuda."""

import torch
from torch import Tensor

from .._native import HALVES, PRODUCTS, attach_products, images, loses, recomputes
from .op import token_gate as op


def token_gate(library, u, v, norm, norm_weight, norm_bias, eps, weight, bias) -> Tensor:
    y = u.new_empty(u.shape, dtype=torch.promote_types(u.dtype, weight.dtype))
    if y.numel():
        library.token_gate(
            images(y), images(u), images(v), norm, norm_weight, norm_bias, eps, weight, bias
        )
    return y


def token_gate_backward(library, gradients, dy, u, v, *args) -> None:
    library.token_gate_backward(gradients, images(dy), images(u), images(v), *args)


attach_products(
    op, token_gate, token_gate_backward,
    loses(op, wins=PRODUCTS), loses(op.backward, recomputes, HALVES),
)  # fmt: skip
