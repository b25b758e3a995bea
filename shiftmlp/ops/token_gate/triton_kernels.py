"""token_gate in Triton: the product over the tokens of v, multiplied by u before it is written."""

import torch
from torch import Tensor

from .._math import pick
from .._triton_math import sum_all
from .._triton_tokens import mix, normed, operand, refusal
from .._triton_tokens_backward import linear_adjoint, weight_gradient


def refuses(u, v, norm, norm_weight, norm_bias, eps, weight, bias) -> str | None:
    return refusal(v, weight, u, norm_weight, norm_bias, bias)


def refuses_backward(
    dy, u, v, norm, norm_weight, norm_bias, eps, weight, bias, needs
) -> str | None:
    return refusal(v, weight, dy, u, norm_weight, norm_bias, bias)


def token_gate(u, v, norm, norm_weight, norm_bias, eps, weight, bias) -> Tensor:
    y = u.new_empty(u.shape, dtype=torch.promote_types(u.dtype, weight.dtype))
    mix(weight, normed(v, norm, norm_weight, norm_bias, eps), y, bias, times=operand(u))
    return y


def token_gate_backward(
    dy, u, v, norm, norm_weight, norm_bias, eps, weight, bias, needs
) -> list[Tensor]:
    needs_u, *needs_norm, needs_weight, needs_bias = needs
    norm = norm, norm_weight, norm_bias, eps
    tokens = normed(v, *norm)
    du = None
    if needs_u:
        du = u.new_empty(u.shape)
        mix(weight, tokens, du, bias, times=operand(dy))
    dgate = operand(dy, times=u)
    dv, dvectors = linear_adjoint(weight, dgate, v, tokens, norm, needs_norm)
    dlinear = weight_gradient(dgate, tokens, weight.dtype, (needs_weight, needs_bias))
    dalpha, dbeta, _, *dlinear = sum_all((*dvectors, *dlinear))
    return pick((du, dv, dalpha, dbeta, *dlinear), needs)


def _meta(*shape, dtype=torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# gMLP-S16: u and v are the halves of one tensor.
_u, _v = _meta(128, 196, 1536).chunk(2, -1)
_gmlp = _u, _v, "layer_norm", _meta(768), _meta(768), 1e-5, _meta(196, 196), _meta(196)
COMPILE_CASES = {
    "gMLP-S16 bf16": (token_gate, _gmlp),
    "gMLP-S16 backward bf16": (token_gate_backward, (_meta(128, 196, 768), *_gmlp, [True] * 6)),
}
