"""What shift_linear means: ``residual + scale * act(linear(shift(x)))``.

Source: S2-MLP, arXiv 2106.07477; with other shifts CycleFC (2107.10224) and AS-MLP (2107.08391).
"""

import functools

import torch.nn.functional as F
from torch import Tensor

from ...shift import Shift
from .._math import activate, activate_backward, finish, linear_backward, pick, scale_backward
from ..spatial_shift.op import shifted
from ..spatial_shift.reference import shift_map, shift_map_backward
from .op import shift_linear as op


@op.kernel("reference")
def shift_linear(x, weight, bias, shift, activation, scale, residual, move=shift_map) -> Tensor:
    moved = move(x.to(weight.dtype), Shift.from_spec(shift))
    return finish(activate(F.linear(moved, weight, bias), activation), scale, residual)


op.composed = functools.partial(shift_linear, move=shifted)


@op.backward.kernel("reference")
def shift_linear_backward(dy, x, weight, bias, shift, activation, scale, needs) -> list[Tensor]:
    needs_x, needs_weight, needs_bias, needs_scale = needs
    moved = shift_map(x.to(weight.dtype), Shift.from_spec(shift))
    inner = F.linear(moved, weight, bias) if needs_scale or activation != "none" else None

    y = activate(inner, activation) if needs_scale else None
    dy, dscale = scale_backward(dy, y, scale, weight.dtype)
    dy = activate_backward(dy, inner, activation)
    dmoved, dweight, dbias = linear_backward(dy, moved, weight, needs_x, needs_weight, needs_bias)
    dx = shift_map_backward(dmoved, Shift.from_spec(shift)).to(x.dtype) if needs_x else None
    return pick((dx, dweight, dbias, dscale), needs)
