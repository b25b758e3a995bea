"""What token_gate means: ``u * linear(norm(v)^T)^T``, gMLP's spatial gating unit.

Source: gMLP, arXiv 2105.08050; u is the first half of the hidden channels, v the second.
"""

import torch.nn.functional as F
from torch import Tensor

from .._math import linear_backward, normalize, normalize_backward, pick
from .op import token_gate as op


@op.kernel("reference")
def token_gate(u, v, norm, norm_weight, norm_bias, eps, weight, bias) -> Tensor:
    normed = normalize(v, norm, norm_weight, norm_bias, eps).to(weight.dtype)
    return (u * F.linear(normed.mT, weight, bias).mT).contiguous()


@op.backward.kernel("reference")
def token_gate_backward(
    dy, u, v, norm, norm_weight, norm_bias, eps, weight, bias, needs
) -> list[Tensor]:
    needs_u, *needs_norm, needs_weight, needs_bias = needs
    normed = normalize(v, norm, norm_weight, norm_bias, eps).to(weight.dtype).mT
    du = None
    if needs_u:
        du = (dy * F.linear(normed, weight, bias).mT).to(u.dtype)

    dgate = (dy * u).to(weight.dtype).mT
    dnormed, dweight, dbias = linear_backward(
        dgate, normed, weight, any(needs_norm), needs_weight, needs_bias
    )
    dnorm = [None] * 3
    if dnormed is not None:
        dnorm = normalize_backward(dnormed.mT, v, norm, norm_weight, eps, needs_norm)
    return pick((du, *dnorm, dweight, dbias), needs)
