"""The backward of token_mlp up to its norm in one Triton kernel: the hidden never waits in memory.

A program computes a chunk of the hidden and of its gradient, writes both for the gradients of the
weights, and multiplies the gradient on. Two programs fit on a Hopper's multiprocessor, so that one
is in its products while the other is in its GELU.
"""

import torch
import triton
import triton.language as tl

from .. import _triton
from .._triton_math import FROM_REGISTERS, activate, architecture, empty, slope, zeros
from .._triton_tokens import (
    MAX_TOKENS,
    NOTHING,
    Operand,
    block,
    dense,
    held,
    mix,
    operand,
    pieces,
    place,
    store,
    vector,
)
from .._triton_tokens_backward import (
    adjoint,
    empty_for_adjoint,
    finish,
    linear_adjoint,
    store_vectors,
    through_norm,
    vector_parts,
)


@triton.jit
def token_mlp_backward_kernel(
    w1_ptr,  # (D, S)
    w2_ptr,  # (T, D)
    b1_ptr,  # (D,) or None
    b2_ptr,  # (T,) or None
    x,  # Operand (B, S, C)
    dy,  # Operand (B, T, C)
    dx_ptr,  # (B, S, C) or None: of x, behind the affine if there is one
    dinner_ptr,  # (B, D, C)
    hidden_ptr,  # (B, D, C)
    before,  # Operand (B, S, C) or NOTHING: x before its affine
    alpha_ptr, scale_ptr,  # (C,) or None
    parts_ptr,  # (B, 3, C) or None: of the gradients of alpha, beta and scale
    S: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    S_PIECES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    T_PIECES: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = w1_ptr.dtype.element_ty
    b, c, tile = place(S, C, BLOCK_C, BLOCK_S)
    tokens = held(x, b, c, S, C, S_PIECES, DTYPE)
    dys = held(dy, b, c, T, C, T_PIECES, DTYPE)
    scale = vector(scale_ptr, c, C, 1.0)
    along = zeros(BLOCK_C, BLOCK_D)
    acc = empty(BLOCK_C, S_PIECES)
    for d0 in range(0, D, BLOCK_D):
        d = (d0 + tl.arange(0, BLOCK_D))[None, :]
        inner = zeros(BLOCK_C, BLOCK_D)
        w1 = ()
        s = 0
        for i in tl.static_range(len(S_PIECES)):
            at = (s + tl.arange(0, S_PIECES[i]))[:, None]
            w = tl.load(w1_ptr + d * S + at, mask=(d < D) & (at < S), other=0.0)
            inner = tl.dot(tokens[i], w, inner)
            w1 = w1 + (w,)
            s += S_PIECES[i]
        dhidden = zeros(BLOCK_C, BLOCK_D)
        t = 0
        for i in tl.static_range(len(T_PIECES)):
            at = (t + tl.arange(0, T_PIECES[i]))[:, None]
            w = tl.load(w2_ptr + at * D + d, mask=(d < D) & (at < T), other=0.0)
            dhidden = tl.dot(dys[i], w, dhidden)
            t += T_PIECES[i]
        if b1_ptr is not None:
            inner += tl.load(b1_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        hidden = activate(inner, ACTIVATION, False)
        store(hidden_ptr, hidden, b, d, c, D, C)
        along += dhidden * hidden
        dinner = (scale * dhidden * slope(inner, ACTIVATION, False)).to(DTYPE)
        store(dinner_ptr, dinner, b, d, c, D, C)
        sums = ()
        for i in tl.static_range(len(S_PIECES)):
            sums = sums + (tl.dot(dinner, tl.trans(w1[i]), acc[i]),)
        acc = sums

    alpha = vector(alpha_ptr, c, C, 1.0)
    dalpha, dbeta = finish(
        acc, before, dx_ptr, None, alpha, b, c, tile, S, C, "none", False, S_PIECES, BLOCK_S
    )
    if parts_ptr is not None:
        dscale = tl.sum(along, 1, keep_dims=True)
        if b2_ptr is not None:
            t = 0
            for i in tl.static_range(len(T_PIECES)):
                at = (t + tl.arange(0, T_PIECES[i]))[None, :]
                bias = tl.load(b2_ptr + at, mask=at < T, other=0.0).to(tl.float32)
                dscale += tl.sum(dys[i].to(tl.float32) * bias, 1, keep_dims=True)
                t += T_PIECES[i]
        store_vectors(parts_ptr, dalpha, dbeta, dscale, b, c, C)


def hidden_backward(
    dy: Operand, x, tokens: Operand, norm, w1, b1, w2, b2, activation, scale,
    needs_norm, needs_scale,
):  # fmt: skip
    """``(hidden, dinner, dx, vectors)``, the last two as of ``linear_adjoint``.

    hidden is what the second product takes, dinner the gradient of what the first one gives.
    """
    B, S, C = tokens.x.shape
    D, T = w1.shape[0], w2.shape[0]
    hidden, dinner = w1.new_empty(2, B, D, C)
    tile = fused_backward_tile(S, D, T, C, w1.dtype, architecture())
    if tile is None:
        inner = torch.empty_like(hidden)
        mix(w1, tokens, inner, b1)
        parts = adjoint(
            w2, dy, dinner, operand(inner), scale=scale, bias=b2, sums=needs_scale,
            activation=activation, hidden=hidden,
        )  # fmt: skip
        dx, vectors = linear_adjoint(w1, operand(dinner), x, tokens, norm, needs_norm)
        dscale = None if parts is None else parts[:, 2]
        return hidden, dinner, dx, (*vectors[:2], (dscale, torch.float32))

    affine = norm[0] == "affine"
    needs_affine = affine and any(needs_norm[1:])
    dx = empty_for_adjoint(x, norm, w1.dtype, needs_norm)
    parts = vector_parts(w1, B, C) if needs_affine or needs_scale else None
    _triton.launch(
        token_mlp_backward_kernel, B * triton.cdiv(C, tile["BLOCK_C"]),
        w1.contiguous(), w2.contiguous(), dense(b1), dense(b2), tokens, dy, dx, dinner, hidden,
        operand(x) if needs_affine else NOTHING, dense(norm[1]) if affine else None, dense(scale),
        parts, S=S, D=D, T=T, C=C, ACTIVATION=activation, **tile,
    )  # fmt: skip
    return hidden, dinner, *through_norm(dx, x, norm, parts, needs_norm, needs_scale)


def fused_backward_tile(S: int, D: int, T: int, C: int, dtype: torch.dtype, arch) -> dict | None:
    """The tile of the fused kernel, or None where a kernel for each product has to do it."""
    if dtype == torch.float32 or max(S, T) > MAX_TOKENS or arch in FROM_REGISTERS:
        return None
    S_PIECES = pieces(S, MAX_TOKENS)
    return {
        "S_PIECES": S_PIECES, "BLOCK_S": sum(S_PIECES), "T_PIECES": pieces(T, MAX_TOKENS),
        "BLOCK_C": block(C, 64), "BLOCK_D": block(D, 32), "num_warps": 4, "num_stages": 2,
    }  # fmt: skip
