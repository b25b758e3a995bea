"""token_mlp in Triton: both products over the tokens in one kernel, the hidden kept on chip.

Like attention: a tile of x is read once, the hidden tokens come in chunks, and the second product
adds up over them. Where the tile does not fit, each product is a kernel of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from .._math import pick, result_dtype
from .._triton_math import FROM_REGISTERS, activate, architecture, empty, sum_all, zeros
from .._triton_tokens import (
    MAX_TOKENS,
    Operand,
    block,
    channels,
    dense,
    held,
    load,
    mix,
    normed,
    operand,
    pieces,
    place,
    refusal,
    store,
    vector,
)
from .._triton_tokens_backward import weight_gradient
from .triton_backward import hidden_backward


@triton.jit
def token_mlp_kernel(
    w1_ptr,  # (D, S)
    w2_ptr,  # (T, D)
    b1_ptr,  # (D,) or None
    b2_ptr,  # (T,) or None
    x,  # Operand (B, S, C)
    y_ptr,  # (B, T, C)
    scale_ptr,  # (C,) or None
    residual,  # Operand (B, T, C) or NOTHING
    S: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    S_PIECES: tl.constexpr,
    T_PIECES: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = w1_ptr.dtype.element_ty
    b, c, _ = place(T, C, BLOCK_C, T)
    tokens = held(x, b, c, S, C, S_PIECES, DTYPE)
    acc = empty(BLOCK_C, T_PIECES)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        hidden = zeros(BLOCK_C, BLOCK_D)
        s = 0
        for i in tl.static_range(len(S_PIECES)):
            at = (s + tl.arange(0, S_PIECES[i]))[:, None]
            w1 = tl.load(w1_ptr + d[None, :] * S + at, mask=(d < D)[None, :] & (at < S), other=0.0)
            hidden = tl.dot(tokens[i], w1, hidden)
            s += S_PIECES[i]
        if b1_ptr is not None:
            hidden += tl.load(b1_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        # Beyond D the hidden is activation(0) = 0, and so is the weight.
        hidden = activate(hidden, ACTIVATION, False).to(DTYPE)
        t = 0
        sums = ()
        for i in tl.static_range(len(T_PIECES)):
            at = (t + tl.arange(0, T_PIECES[i]))[None, :]
            w2 = tl.load(w2_ptr + at * D + d[:, None], mask=(d < D)[:, None] & (at < T), other=0.0)
            sums = sums + (tl.dot(hidden, w2, acc[i]),)
            t += T_PIECES[i]
        acc = sums

    scale = vector(scale_ptr, c, C, 1.0)
    t = 0
    for i in tl.static_range(len(T_PIECES)):
        at = (t + tl.arange(0, T_PIECES[i]))[None, :]
        y = acc[i]
        if b2_ptr is not None:
            y += tl.load(b2_ptr + at, mask=at < T, other=0.0).to(tl.float32)
        y *= scale
        if residual.x is not None:
            y += load(residual, b, at, c, T, C).to(tl.float32)
        store(y_ptr, y, b, at, c, T, C)
        t += T_PIECES[i]


def fused_tile(S: int, D: int, T: int, C: int, dtype: torch.dtype, arch) -> dict | None:
    """The tile of the fused kernel, or None where two kernels have to do it."""
    if dtype == torch.float32 or max(S, T) > MAX_TOKENS:
        return None
    # A Hopper product narrower than 64 columns waits for its rows out of shared memory.
    hidden = 32 if arch in FROM_REGISTERS else 64
    return {
        "S_PIECES": pieces(S, MAX_TOKENS), "T_PIECES": pieces(T, MAX_TOKENS),
        "BLOCK_C": block(C, channels(arch)), "BLOCK_D": block(D, hidden), "num_warps": 8,
    }  # fmt: skip


def mlp_forward(x: Operand, w1, b1, w2, b2, activation, y, scale, residual) -> None:
    B, S, C = x.x.shape
    D, T = w1.shape[0], w2.shape[0]
    if tile := fused_tile(S, D, T, C, w1.dtype, architecture()):
        _triton.launch(
            token_mlp_kernel, B * triton.cdiv(C, tile["BLOCK_C"]),
            w1.contiguous(), w2.contiguous(), dense(b1), dense(b2), x, y, dense(scale), residual,
            S=S, D=D, T=T, C=C, ACTIVATION=activation, **tile,
        )  # fmt: skip
        return
    hidden = w1.new_empty(B, D, C)
    mix(w1, x, hidden, b1, activation=activation)
    mix(w2, operand(hidden), y, b2, scale, residual=residual)


def refuses(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, residual
) -> str | None:
    return refusal(x, w1, w2, norm_weight, norm_bias, b1, b2, scale, residual)


def refuses_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, needs
) -> str | None:
    return refusal(x, w1, w2, dy, norm_weight, norm_bias, b1, b2, scale)


def token_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, residual
) -> Tensor:
    dtype = result_dtype(x, w2, scale, residual)
    y = x.new_empty((*x.shape[:-2], w2.shape[0], x.shape[-1]), dtype=dtype)
    x = normed(x, norm, norm_weight, norm_bias, eps)
    mlp_forward(x, w1, b1, w2, b2, activation, y, scale, operand(residual))
    return y


def token_mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation, scale, needs
) -> list[Tensor]:
    needs_norm, needs_first, needs_second, needs_scale = needs[:3], needs[3:5], needs[5:7], needs[7]
    norm = norm, norm_weight, norm_bias, eps
    tokens = normed(x, *norm)
    hidden, dinner, dx, vectors = hidden_backward(
        operand(dy), x, tokens, norm, w1, b1, w2, b2, activation, scale, needs_norm, needs_scale
    )
    dfirst = weight_gradient(operand(dinner), tokens, w1.dtype, needs_first)
    dsecond = weight_gradient(operand(dy, weight=scale), operand(hidden), w2.dtype, needs_second)
    dalpha, dbeta, dscale, *dlinears = sum_all((*vectors, *dfirst, *dsecond))
    return pick((dx, dalpha, dbeta, *dlinears, dscale), needs)


def _meta(*shape, dtype=torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _mixer(S: int, D: int, C: int, dtype=torch.bfloat16, B: int = 128):
    x, c, d, s = (_meta(*shape, dtype=dtype) for shape in ((B, S, C), (C,), (D,), (S,)))
    w1, w2 = _meta(D, S, dtype=dtype), _meta(S, D, dtype=dtype)
    return x, "layer_norm", c, c, 1e-6, w1, d, w2, s, "gelu", None


COMPILE_CASES = {
    "Mixer-B/16 bf16": (token_mlp, (*_mixer(196, 384, 768), _meta(128, 196, 768))),
    "Mixer-S/16 fp16": (token_mlp, (*_mixer(196, 256, 512, torch.float16), None)),
    "Mixer-S/32 bf16": (token_mlp, (*_mixer(49, 256, 512), None)),
    "576 tokens bf16": (token_mlp, (*_mixer(576, 384, 768), None)),
    "Mixer-B/16 fp32": (token_mlp, (*_mixer(196, 384, 768, torch.float32), None)),
    "Mixer-B/16 backward bf16": (
        token_mlp_backward,
        (_meta(128, 196, 768), *_mixer(196, 384, 768), [*[True] * 7, False]),
    ),
}

# Every way to deal tokens to pieces, with all other sides of a tile at their largest.
TILE_CASES = {
    f"{n} tokens {way} bf16": case
    for n in range(16, 257, 16)
    for way, case in {
        "forward": (token_mlp, (*_mixer(n, 512, 1024), None)),
        "backward": (
            token_mlp_backward,
            (_meta(128, n, 1024), *_mixer(n, 512, 1024), [True] * 7 + [False]),
        ),
    }.items()
}
