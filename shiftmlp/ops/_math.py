"""The pieces that the references are made of, each with its adjoint written out.

Plain PyTorch, out of place, exact in float64. What follows a product in the same formula is kept in
float32 at least. A ``needs_…`` that is False leaves its gradient out and returns None for it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def allows_tf32() -> bool:
    """Whether PyTorch is told that float32 products may run in TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def sum_leading(x: Tensor) -> Tensor:
    """The sum over all but the last axis, kept in float32 at least."""
    return x.to(at_least_float32(x.dtype)).flatten(0, -2).sum(0)


def normalize(x: Tensor, norm: str, weight, bias, eps: float) -> Tensor:
    """``norm`` over the last axis: "none", "layer_norm" or "affine"."""
    if norm == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if norm == "affine":
        return x * weight if bias is None else torch.addcmul(bias, weight, x)
    return x


def normalize_backward(dy: Tensor, x: Tensor, norm: str, weight, eps: float, needs):
    """``(dx, dweight, dbias)`` of ``normalize``; ``needs`` says which."""
    needs_x, needs_weight, needs_bias = needs
    dx = dweight = dbias = None
    if norm == "none":
        return dy.to(x.dtype), None, None
    dtype = at_least_float32(x.dtype)
    dy, x_dtype, x = dy.to(dtype), x.dtype, x.to(dtype)
    if norm == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        x = x * rstd
    scaled = dy if weight is None else dy * weight.to(dtype)
    if needs_x and norm == "layer_norm":
        # The projection away from the two directions that LayerNorm removes: 1 and x.
        along = x * (scaled * x).mean(-1, keepdim=True)
        dx = (rstd * (scaled - scaled.mean(-1, keepdim=True) - along)).to(x_dtype)
    elif needs_x:
        dx = scaled.to(x_dtype)
    if needs_weight:
        dweight = sum_leading(dy * x)
    if needs_bias:
        dbias = sum_leading(dy)
    return dx, dweight, dbias


def activate(x: Tensor, activation: str) -> Tensor:
    """``activation`` of x: "gelu" is erf's, "gelu_tanh" its tanh approximation, "relu", "none"."""
    if activation == "gelu":
        return F.gelu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "relu":
        return F.relu(x)
    return x


def activate_backward(dy: Tensor, x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return dy
    if activation == "relu":
        return torch.where(x > 0, dy, torch.zeros_like(dy))
    dtype, x = dy.dtype, x.to(at_least_float32(x.dtype))
    if activation == "gelu":
        cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
        pdf = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        slope = cdf + x * pdf
    else:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        tanh = torch.tanh(inner)
        inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner_slope
    return (dy.to(x.dtype) * slope).to(dtype)


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor, needs_x, needs_weight, needs_bias):
    """``(dx, dweight, dbias)`` of ``F.linear(x, weight, bias)``."""
    dx = dy @ weight if needs_x else None
    dweight = dy.flatten(0, -2).mT @ x.flatten(0, -2) if needs_weight else None
    dbias = sum_leading(dy).to(dy.dtype) if needs_bias else None
    return dx, dweight, dbias


def finish(y: Tensor, scale: Tensor | None, residual: Tensor | None) -> Tensor:
    """``residual + scale * y``, dense, never an alias of an argument."""
    if scale is not None:
        y = y * scale
    if residual is not None:
        y = residual + y
    return y.contiguous()


def scale_backward(dy: Tensor, y, scale: Tensor | None, dtype: torch.dtype):
    """``(dy of the unscaled y in dtype, dscale)``; ``y`` is None where dscale is not wanted."""
    dscale = None if y is None else sum_leading(dy * y)
    return (dy if scale is None else dy * scale).to(dtype), dscale


def result_dtype(x, weight, scale, residual, post_norm="none", post_norm_weight=None):
    """The dtype of the unfused modules: products in the weight's, then PyTorch's promotion.

    Under autocast a LayerNorm after the product returns float32 on CUDA and keeps its input's
    dtype on the CPU.
    """
    dtype = weight.dtype
    promoting = [scale, residual]
    if post_norm == "affine" or (post_norm == "layer_norm" and x.is_cuda):
        promoting.append(post_norm_weight)
    for tensor in promoting:
        if tensor is not None and tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def pick(gradients, needs) -> list[Tensor]:
    """The wanted gradients, dense."""
    return [g.contiguous() for g, need in zip(gradients, needs, strict=True) if need]
