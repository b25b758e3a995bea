"""The reference of the three MLPs: two linear layers, an activation and perhaps a shift between.

Written out with their adjoint, for the channel axis; token_mlp hands in its transposed input.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..shift import Shift
from ._math import (
    activate,
    activate_backward,
    finish,
    linear_backward,
    normalize,
    normalize_backward,
    pick,
    scale_backward,
)
from .spatial_shift.reference import shift_map, shift_map_backward


class TwoLinears:
    """``linear2(shift(act(linear1(x))))``, with what its adjoint reads."""

    def __init__(
        self, x, w1, b1, w2, b2, activation: str, shift: Shift | None = None,
        move: Callable = shift_map,
    ):  # fmt: skip
        self.x, self.w1, self.w2, self.b2 = x, w1, w2, b2
        self.activation, self.shift = activation, shift
        self.inner = F.linear(x, w1, b1)
        self.hidden = activate(self.inner, activation)
        if shift is not None:
            self.hidden = move(self.hidden, shift)

    def output(self) -> Tensor:
        return F.linear(self.hidden, self.w2, self.b2)

    def backward(self, dy: Tensor, needs):
        """``(dx, dw1, db1, dw2, db2)``."""
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needs
        needs_hidden = needs_x or needs_w1 or needs_b1
        dhidden, dw2, db2 = linear_backward(
            dy, self.hidden, self.w2, needs_hidden, needs_w2, needs_b2
        )
        if not needs_hidden:
            return None, None, None, dw2, db2
        if self.shift is not None:
            dhidden = shift_map_backward(dhidden, self.shift)
        dinner = activate_backward(dhidden, self.inner, self.activation)
        dx, dw1, db1 = linear_backward(dinner, self.x, self.w1, needs_x, needs_w1, needs_b1)
        return dx, dw1, db1, dw2, db2


def mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual, move=shift_map,
) -> Tensor:  # fmt: skip
    normed = normalize(x, norm, norm_weight, norm_bias, eps).to(w1.dtype)
    y = TwoLinears(normed, w1, b1, w2, b2, activation, shift, move).output()
    y = normalize(y, post_norm, post_norm_weight, post_norm_bias, post_eps)
    return finish(y, scale, residual)


def mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
) -> list[Tensor]:  # fmt: skip
    # The order of the tensors in the schema.
    needs_norm, needs_linears, needs_post, needs_scale = needs[:3], needs[3:7], needs[7:9], needs[9]
    needs_normed = any(needs_norm)

    normed = normalize(x, norm, norm_weight, norm_bias, eps).to(w1.dtype)
    linears = TwoLinears(normed, w1, b1, w2, b2, activation, shift)
    branch = linears.output() if needs_scale or post_norm != "none" else None
    y = None
    if needs_scale:
        y = normalize(branch, post_norm, post_norm_weight, post_norm_bias, post_eps)

    product = w2.dtype if post_norm == "none" else dy.dtype
    dy, dscale = scale_backward(dy, y, scale, product)
    needs_branch = needs_normed or any(needs_linears)
    dpost, dlinears, dnorm = [None] * 2, [None] * 4, [None] * 3
    if post_norm != "none":
        wanted = (needs_branch, *needs_post)
        dy, *dpost = normalize_backward(dy, branch, post_norm, post_norm_weight, post_eps, wanted)
    if needs_branch:
        dnormed, *dlinears = linears.backward(dy, (needs_normed, *needs_linears))
    if needs_normed:
        dnorm = normalize_backward(dnormed, x, norm, norm_weight, eps, needs_norm)
    return pick((*dnorm, *dlinears, *dpost, dscale), needs)
