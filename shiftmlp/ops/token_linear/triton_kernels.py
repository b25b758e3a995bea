"""token_linear in Triton: one product over the tokens, with norm, scale and residual in it."""

import torch
from torch import Tensor

from .._math import pick, result_dtype
from .._triton_math import sum_all
from .._triton_tokens import mix, normed, operand, refusal
from .._triton_tokens_backward import linear_adjoint, weight_gradient


def refuses(x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual) -> str | None:
    return refusal(x, weight, norm_weight, norm_bias, bias, scale, residual)


def refuses_backward(
    dy, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, needs
) -> str | None:
    return refusal(x, weight, dy, norm_weight, norm_bias, bias, scale)


def token_linear(x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual) -> Tensor:
    dtype = result_dtype(x, weight, scale, residual)
    y = x.new_empty((*x.shape[:-2], weight.shape[0], x.shape[-1]), dtype=dtype)
    mix(
        weight, normed(x, norm, norm_weight, norm_bias, eps), y, bias, scale,
        residual=operand(residual),
    )  # fmt: skip
    return y


def token_linear_backward(
    dy, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, needs
) -> list[Tensor]:
    *needs_norm, needs_weight, needs_bias, needs_scale = needs
    norm = norm, norm_weight, norm_bias, eps
    tokens = normed(x, *norm)
    dx, dvectors = linear_adjoint(
        weight, operand(dy), x, tokens, norm, needs_norm, scale, bias, needs_scale
    )
    dlinear = weight_gradient(
        operand(dy, weight=scale), tokens, weight.dtype, (needs_weight, needs_bias)
    )
    dalpha, dbeta, dscale, *dlinear = sum_all((*dvectors, *dlinear))
    return pick((dx, dalpha, dbeta, *dlinear, dscale), needs)


def _meta(*shape, dtype=torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _resmlp(S: int, C: int, dtype=torch.bfloat16):
    x, c, t = _meta(128, S, C, dtype=dtype), _meta(C, dtype=dtype), _meta(S, dtype=dtype)
    return x, "affine", c, c, 0.0, _meta(S, S, dtype=dtype), t, c


def _layer_norm(S: int, C: int):
    x, c = _meta(8, S, C, dtype=torch.float32), _meta(C, dtype=torch.float32)
    return x, "layer_norm", c, c, 1e-6, _meta(S, S), _meta(S), None, x


_x = _meta(128, 196, 384)
COMPILE_CASES = {
    "ResMLP-S24 bf16": (token_linear, (*_resmlp(196, 384), _x)),
    "ResMLP-S24 fp32": (
        token_linear,
        (*_resmlp(196, 384, torch.float32), _meta(128, 196, 384, dtype=torch.float32)),
    ),
    "784 tokens bf16": (token_linear, (*_resmlp(784, 384), None)),
    "layer_norm autocast": (token_linear, _layer_norm(49, 200)),
    "ResMLP-S24 backward bf16": (
        token_linear_backward,
        (_x, *_resmlp(196, 384), [True] * 6),
    ),
}
