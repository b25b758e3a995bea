"""The public functions: contract, checks, one call of the op.

Common to all. ``x`` is channels last with any number of leading batch dimensions; weights are
(out, in) as in ``nn.Linear``; every bias may be None; all arguments are float32, bfloat16, float16
or float64 alike, or mixed under ``torch.autocast`` with the unfused modules' result dtype. Results
are fresh and contiguous. Sums and statistics are kept in float32 at least. Every tensor argument
has a gradient, deterministic to the bit; second derivatives are right, forward-mode AD raises.

``norm`` is None, ``LayerNorm(weight, bias, eps)`` or ``Affine(alpha, beta)`` over C; ``activation``
is "gelu" (erf), "gelu_tanh", "relu" or None; ``scale`` is per channel (LayerScale); ``residual``
has the result's shape. ``backend`` is "auto" (the fastest kernel that takes the inputs) or one of
"cuda", "triton", "cpu", "reference", which is then used or raises.

Every function raises ValueError for shapes, devices and unknown names, TypeError for dtypes and
types, NotImplementedError when the named backend cannot take the inputs; the message says why.
"""

import torch
from torch import Tensor

from . import ops
from ._checks import (
    check,
    check_activation,
    check_input,
    check_norm,
    check_shift,
    check_weight,
)
from ._settings import resolve
from .norm import Affine, LayerNorm
from .ops._op import Op
from .shift import Shift


def _call(op: Op, *args) -> Tensor:
    if torch.compiler.is_exporting():
        # An exported program stands alone: it gets the reference's aten operations.
        return op.kernels["reference"][0](*args[:-1])
    return op.call(*args)


def spatial_shift(x: Tensor, shift: Shift = Shift.S2, *, backend: str = "auto") -> Tensor:
    """Move channel groups over the map: ``y[..., h, w, c] = x[..., h - dy, w - dx, c]``.

    Args:
        x: (..., H, W, C).
        shift: which group moves where, and what enters at the border.

    Returns:
        (..., H, W, C); bitwise a copy of x's values.

    Source: S2-MLP, arXiv 2106.07477, out of place.
    """
    check_input("x", x, "H W C")
    return _call(ops.spatial_shift, x, check_shift(shift), resolve(backend))


def shift_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    shift: Shift = Shift.S2,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``residual + scale * activation(linear(spatial_shift(x), weight, bias))``.

    Args:
        x: (..., H, W, C).
        weight: (O, C).
        bias, scale: (O,).
        residual: (..., H, W, O).

    Returns:
        (..., H, W, O).

    Source: S2-MLP, arXiv 2106.07477; CycleFC, arXiv 2107.10224; AS-MLP, arXiv 2107.08391.
    """
    like = check_input("x", x, "H W C")
    *grid, C = x.shape
    O = check_weight("weight", weight, "O", C, like)  # noqa: E741
    check("bias", bias, (O,), like)
    check("scale", scale, (O,), like)
    if residual is not None:
        check("residual", residual, (*grid, O), like)
    return _call(
        ops.shift_linear, x, weight, bias, check_shift(shift), check_activation(activation),
        scale, residual, resolve(backend),
    )  # fmt: skip


def shift_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    shift: Shift = Shift.S2,
    norm: LayerNorm | Affine | None = None,
    post_norm: LayerNorm | Affine | None = None,
    activation: str | None = "gelu",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``residual + scale * post_norm(linear2(spatial_shift(activation(linear1(norm(x))))))``.

    Args:
        x: (..., H, W, C).
        w1: (D, C). b1: (D,).
        w2: (O, D). b2: (O,).
        norm: over C. post_norm: over O.
        scale: (O,).
        residual: (..., H, W, O).

    Returns:
        (..., H, W, O).

    Source: S2-MLP, arXiv 2106.07477. The paper's block is post-norm, most ports are pre-norm.
    """
    like = check_input("x", x, "H W C")
    *grid, C = x.shape
    O = _check_mlp("O", C, w1, b1, w2, b2, like)  # noqa: E741
    check("scale", scale, (O,), like)
    if residual is not None:
        check("residual", residual, (*grid, O), like)
    return _call(
        ops.shift_mlp, x, *check_norm("norm", norm, C, like), w1, b1, w2, b2,
        check_shift(shift), check_activation(activation),
        *check_norm("post_norm", post_norm, O, like), scale, residual, resolve(backend),
    )  # fmt: skip


def token_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: LayerNorm | Affine | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``residual + scale * linear(norm(x)^T, weight, bias)^T``: a linear layer over tokens.

    Args:
        x: (..., S, C).
        weight: (S_out, S).
        bias: (S_out,), one per token.
        norm: over C.
        scale: (C,).
        residual: (..., S_out, C).

    Returns:
        (..., S_out, C).

    Source: ResMLP, arXiv 2105.03404.
    """
    like = check_input("x", x, "S C")
    *batch, S, C = x.shape
    S_out = check_weight("weight", weight, "S_out", S, like)
    check("bias", bias, (S_out,), like)
    check("scale", scale, (C,), like)
    if residual is not None:
        check("residual", residual, (*batch, S_out, C), like)
    return _call(
        ops.token_linear, x, *check_norm("norm", norm, C, like), weight, bias, scale, residual,
        resolve(backend),
    )  # fmt: skip


def token_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    norm: LayerNorm | Affine | None = None,
    activation: str | None = "gelu",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``residual + scale * linear2(activation(linear1(norm(x)^T)))^T``: an MLP over tokens.

    Args:
        x: (..., S, C).
        w1: (D, S). b1: (D,).
        w2: (S_out, D). b2: (S_out,), one per token.
        norm: over C.
        scale: (C,).
        residual: (..., S_out, C).

    Returns:
        (..., S_out, C).

    Source: MLP-Mixer, arXiv 2105.01601.
    """
    like = check_input("x", x, "S C")
    *batch, S, C = x.shape
    S_out = _check_mlp("S_out", S, w1, b1, w2, b2, like)
    check("scale", scale, (C,), like)
    if residual is not None:
        check("residual", residual, (*batch, S_out, C), like)
    return _call(
        ops.token_mlp, x, *check_norm("norm", norm, C, like), w1, b1, w2, b2,
        check_activation(activation), scale, residual, resolve(backend),
    )  # fmt: skip


def token_gate(
    u: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: LayerNorm | Affine | None = None,
    backend: str = "auto",
) -> Tensor:
    """``u * linear(norm(v)^T, weight, bias)^T``: gMLP's spatial gating.

    Args:
        u: (..., S_out, C).
        v: (..., S, C).
        weight: (S_out, S).
        bias: (S_out,), one per token.
        norm: over v's C.

    Returns:
        (..., S_out, C).

    Source: gMLP, arXiv 2105.08050.
    """
    like = check_input("v", v, "S C")
    *batch, S, C = v.shape
    S_out = check_weight("weight", weight, "S_out", S, like)
    check("bias", bias, (S_out,), like)
    check_input("u", u, "S_out C")
    check("u", u, (*batch, S_out, C), like)
    return _call(
        ops.token_gate, u, v, *check_norm("norm", norm, C, like), weight, bias, resolve(backend)
    )


def channel_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    norm: LayerNorm | Affine | None = None,
    post_norm: LayerNorm | Affine | None = None,
    activation: str | None = "gelu",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``residual + scale * post_norm(linear2(activation(linear1(norm(x)))))``: MLP over channels.

    Args:
        x: (..., C).
        w1: (D, C). b1: (D,).
        w2: (O, D). b2: (O,).
        norm: over C. post_norm: over O.
        scale: (O,).
        residual: (..., O).

    Returns:
        (..., O).

    Source: MLP-Mixer, arXiv 2105.01601, and every vision-MLP after it.
    """
    like = check_input("x", x, "C")
    *positions, C = x.shape
    O = _check_mlp("O", C, w1, b1, w2, b2, like)  # noqa: E741
    check("scale", scale, (O,), like)
    if residual is not None:
        check("residual", residual, (*positions, O), like)
    return _call(
        ops.channel_mlp, x, *check_norm("norm", norm, C, like), w1, b1, w2, b2,
        check_activation(activation), *check_norm("post_norm", post_norm, O, like),
        scale, residual, resolve(backend),
    )  # fmt: skip


def _check_mlp(out: str, mixed: int, w1, b1, w2, b2, like) -> int:
    """The size that two linear layers make of an axis of size ``mixed``."""
    D = check_weight("w1", w1, "D", mixed, like)
    check("b1", b1, (D,), like)
    width = check_weight("w2", w2, out, D, like)
    check("b2", b2, (width,), like)
    return width
