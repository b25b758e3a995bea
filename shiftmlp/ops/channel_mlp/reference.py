"""What channel_mlp means: ``residual + scale * post_norm(linear2(act(linear1(norm(x)))))``.

Source: MLP-Mixer, arXiv 2105.01601; the same in every vision-MLP, with or without norm and scale.
"""

from torch import Tensor

from .._mlp import mlp, mlp_backward
from .op import channel_mlp as op


@op.kernel("reference")
def channel_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
) -> Tensor:  # fmt: skip
    return mlp(
        x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, None, activation,
        post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
    )  # fmt: skip


@op.backward.kernel("reference")
def channel_mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
) -> list[Tensor]:  # fmt: skip
    return mlp_backward(
        dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, None, activation,
        post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
    )  # fmt: skip
