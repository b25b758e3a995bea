"""What token_linear means: ``residual + scale * linear(norm(x)^T)^T``, a linear layer over tokens.

Source: ResMLP, arXiv 2105.03404, in the form of its released code: no affine after the layer.
"""

import torch.nn.functional as F
from torch import Tensor

from .._math import finish, linear_backward, normalize, normalize_backward, pick, scale_backward
from .op import token_linear as op


@op.kernel("reference")
def token_linear(x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual) -> Tensor:
    normed = normalize(x, norm, norm_weight, norm_bias, eps).to(weight.dtype)
    return finish(F.linear(normed.mT, weight, bias).mT, scale, residual)


@op.backward.kernel("reference")
def token_linear_backward(
    dy, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, needs
) -> list[Tensor]:
    *needs_norm, needs_weight, needs_bias, needs_scale = needs
    normed = normalize(x, norm, norm_weight, norm_bias, eps).to(weight.dtype).mT
    y = F.linear(normed, weight, bias).mT if needs_scale else None

    dy, dscale = scale_backward(dy, y, scale, weight.dtype)
    dnormed, dweight, dbias = linear_backward(
        dy.mT, normed, weight, any(needs_norm), needs_weight, needs_bias
    )
    dnorm = [None] * 3
    if dnormed is not None:
        dnorm = normalize_backward(dnormed.mT, x, norm, norm_weight, eps, needs_norm)
    return pick((*dnorm, dweight, dbias, dscale), needs)
