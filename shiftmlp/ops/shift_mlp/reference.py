"""What shift_mlp means: ``residual + scale * post_norm(linear2(shift(act(linear1(norm(x))))))``.

Source: S2-MLP, arXiv 2106.07477: post-norm as in its figure 1; most ports are pre-norm.
"""

import functools

from torch import Tensor

from ...shift import Shift
from .._mlp import mlp, mlp_backward
from ..spatial_shift.op import shifted
from ..spatial_shift.reference import shift_map
from .op import shift_mlp as op


@op.kernel("reference")
def shift_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual, move=shift_map,
) -> Tensor:  # fmt: skip
    return mlp(
        x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, Shift.from_spec(shift), activation,
        post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual, move,
    )  # fmt: skip


op.composed = functools.partial(shift_mlp, move=shifted)


@op.backward.kernel("reference")
def shift_mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
) -> list[Tensor]:  # fmt: skip
    return mlp_backward(
        dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, Shift.from_spec(shift),
        activation, post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
    )  # fmt: skip
