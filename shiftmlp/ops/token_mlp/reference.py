"""What token_mlp means: ``residual + scale * (linear2(act(linear1(norm(x)^T))))^T``.

Source: MLP-Mixer, arXiv 2105.01601; the norm is over channels, the MLP over tokens.
"""

from torch import Tensor

from .._math import finish, normalize, normalize_backward, pick, scale_backward
from .._mlp import TwoLinears
from .op import token_mlp as op


@op.kernel("reference")
def token_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, residual
) -> Tensor:
    normed = normalize(x, norm, norm_weight, norm_bias, eps).to(w1.dtype)
    y = TwoLinears(normed.mT, w1, b1, w2, b2, activation).output()
    return finish(y.mT, scale, residual)


@op.backward.kernel("reference")
def token_mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, needs
) -> list[Tensor]:
    needs_norm, needs_linears, needs_scale = needs[:3], needs[3:7], needs[7]
    normed = normalize(x, norm, norm_weight, norm_bias, eps).to(w1.dtype)
    linears = TwoLinears(normed.mT, w1, b1, w2, b2, activation)
    y = linears.output().mT if needs_scale else None

    dy, dscale = scale_backward(dy, y, scale, w2.dtype)
    dnormed, *dlinears = linears.backward(dy.mT, (any(needs_norm), *needs_linears))
    dnorm = [None] * 3
    if dnormed is not None:
        dnorm = normalize_backward(dnormed.mT, x, norm, norm_weight, eps, needs_norm)
    return pick((*dnorm, *dlinears, dscale), needs)
