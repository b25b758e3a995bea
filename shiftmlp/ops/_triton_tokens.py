"""Products over the tokens in Triton: the frame of token_linear, token_gate and token_mlp.

Rows of a tile are channels and its columns tokens, so that x, whose channels are dense, is read and
written as it lies and nothing is transposed. Tokens are dealt to pieces that are powers of two: 196
of them cost 128 + 64 + 16 columns, not 256.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _triton
from ._triton_math import (
    FROM_REGISTERS,
    MAX_CHANNELS,
    activate,
    architecture,
    empty,
    input_precision,
    row_statistics,
    zeros,
)

MAX_TOKENS = 208  # of a tile; sums of more do not stay in registers


class Operand(NamedTuple):
    """A (B, S, C) as kernels read it: normalised, times a weight, plus a bias, times a tensor."""

    x: Tensor | None
    sB: int = 0
    sS: int = 0
    mean: Tensor | None = None
    rstd: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    times: Tensor | None = None
    tB: int = 0
    tS: int = 0


# Not None, as Triton 3.6 cannot ask whether a tuple is.
NOTHING = Operand(None)


@triton.jit
def load(o, b, s, c, S: tl.constexpr, C: tl.constexpr):
    """Operand ``o`` at image b, tokens s and channels c; zero outside, in float32 if changed."""
    within = (s < S) & (c < C)
    wide = s.to(tl.int64)
    x = tl.load(o.x + b * o.sB + wide * o.sS + c, mask=within, other=0.0)
    if o.mean is not None:
        x = x.to(tl.float32) - tl.load(o.mean + b * S + s, mask=s < S, other=0.0)
        x *= tl.load(o.rstd + b * S + s, mask=s < S, other=0.0)
    if o.weight is not None:
        x = x.to(tl.float32) * tl.load(o.weight + c, mask=c < C, other=0.0).to(tl.float32)
    if o.bias is not None:
        x = x.to(tl.float32) + tl.load(o.bias + c, mask=c < C, other=0.0).to(tl.float32)
    if o.times is not None:
        times = tl.load(o.times + b * o.tB + wide * o.tS + c, mask=within, other=0.0)
        x = x.to(tl.float32) * times.to(tl.float32)
    if o.mean is not None or o.bias is not None:
        x = tl.where(within, x, 0.0)
    return x


@triton.jit
def held(x, b, c, S: tl.constexpr, C: tl.constexpr, PIECES: tl.constexpr, DTYPE: tl.constexpr):
    """All tokens of Operand x at image b and channels c, in pieces."""
    tokens = ()
    s = 0
    for i in tl.static_range(len(PIECES)):
        piece = load(x, b, (s + tl.arange(0, PIECES[i]))[None, :], c, S, C)
        tokens = tokens + (piece.to(DTYPE),)
        s += PIECES[i]
    return tokens


@triton.jit
def product(
    w_ptr,  # (T, S), or (S, T) if TRANSPOSED
    x,  # Operand (B, S, C)
    sum_ptr,  # (S,) or None
    b, c, tile, end,
    S: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A tile of ``weight @ x`` in pieces, each (channels, tokens), at image b and channels c.

    With it the sums over the tokens of x, weighted by ``sum_ptr``; 0 in all tiles but the first.
    """
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty
    acc = empty(c.shape[0], PIECES)
    weighted = zeros(c.shape[0], BLOCK_S)
    for s0 in range(0, end, BLOCK_S):
        s = s0 + tl.arange(0, BLOCK_S)
        tokens = load(x, b, s[None, :], c, S, C)
        if sum_ptr is not None:
            weights = tl.load(sum_ptr + s, mask=(s < S) & (tile == 0), other=0.0).to(tl.float32)
            weighted += tokens.to(tl.float32) * weights[None, :]
        tokens = tokens.to(DTYPE)
        t = tile * BLOCK_T
        sums = ()
        for i in tl.static_range(len(PIECES)):
            out = (t + tl.arange(0, PIECES[i]))[None, :]
            at = s[:, None] * T + out if TRANSPOSED else out * S + s[:, None]
            w = tl.load(w_ptr + at, mask=(s < S)[:, None] & (out < T), other=0.0)
            sums = sums + (tl.dot(tokens, w, acc[i], input_precision=PRECISION),)
            t += PIECES[i]
        acc = sums
    return acc, tl.sum(weighted, 1, keep_dims=True)


@triton.jit(do_not_specialize=["end"])
def mix_kernel(
    w_ptr,  # (T, S), or (S, T) if TRANSPOSED
    x,  # Operand (B, S, C)
    y_ptr,  # (B, T, C)
    bias_ptr,  # (T,) or None
    scale_ptr,  # (C,) or None
    times,  # Operand (B, T, C) or NOTHING
    residual,  # Operand (B, T, C) or NOTHING
    end,  # S once more: known when compiled, LLVM would write out every step
    S: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    EXACT: tl.constexpr = w_ptr.dtype.element_ty == tl.float32
    b, c, tile = place(T, C, BLOCK_C, BLOCK_T)
    acc, _ = product(
        w_ptr, x, None, b, c, tile, end, S, T, C, TRANSPOSED, PRECISION, BLOCK_S, PIECES, BLOCK_T
    )
    scale = vector(scale_ptr, c, C, 1.0)
    t = tile * BLOCK_T
    for i in tl.static_range(len(PIECES)):
        out = (t + tl.arange(0, PIECES[i]))[None, :]
        y = acc[i]
        if bias_ptr is not None:
            y += tl.load(bias_ptr + out, mask=out < T, other=0.0).to(tl.float32)
        y = activate(y, ACTIVATION, EXACT) * scale
        if times.x is not None:
            y *= load(times, b, out, c, T, C).to(tl.float32)
        if residual.x is not None:
            y += load(residual, b, out, c, T, C).to(tl.float32)
        store(y_ptr, y, b, out, c, T, C)
        t += PIECES[i]


@triton.jit
def place(T: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr):
    """The image, the channels (BLOCK_C, 1) and the tile of tokens of a program."""
    tiles: tl.constexpr = (T + BLOCK_T - 1) // BLOCK_T
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    rest = tl.program_id(0) // tiles
    c = rest % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return (rest // blocks).to(tl.int64), c[:, None], tl.program_id(0) % tiles


@triton.jit
def vector(v_ptr, c, C: tl.constexpr, missing: tl.constexpr):
    """A vector per channel in float32, or ``missing`` in its place."""
    v = tl.full(c.shape, missing, tl.float32)
    if v_ptr is not None:
        v = tl.load(v_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    return v


@triton.jit
def store(y_ptr, y, b, t, c, T: tl.constexpr, C: tl.constexpr):
    """y at image b, tokens t and channels c of a dense (B, T, C)."""
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (b * T + t) * C + c, y, mask=(t < T) & (c < C))


def pieces(n: int, most: int) -> tuple[int, ...]:
    """At most three powers of two that hold a tile of n tokens, where a tile holds at most most."""
    tiles = max(1, math.ceil(n / most))
    sixteens = max(1, math.ceil(n / tiles / 16))
    while sixteens.bit_count() > 3:
        sixteens += 1
    return tuple(16 << bit for bit in reversed(range(sixteens.bit_length())) if sixteens >> bit & 1)


def block(n: int, most: int) -> int:
    """The power of two that holds n, from the 16 that a product needs to ``most``."""
    return max(16, min(most, triton.next_power_of_2(max(n, 1))))


def operand(x: Tensor | None, weight=None, bias=None, eps=None, times=None) -> Operand:
    """x as kernels read it, NOTHING for None; an ``eps`` asks for LayerNorm."""
    if x is None:
        return NOTHING
    x = rows(x)
    statistics = (None, None) if eps is None else row_statistics(x, eps)
    o = Operand(x, *x.stride()[:2], *statistics, dense(weight), dense(bias))
    if times is not None:
        times = rows(times)
        o = o._replace(times=times, tB=times.stride(0), tS=times.stride(1))
    return o


def normed(x: Tensor, norm: str, weight, bias, eps: float) -> Operand:
    return operand(x, weight, bias, eps if norm == "layer_norm" else None)


def rows(x: Tensor) -> Tensor:
    """x as (B, S, C), copied where its channels do not lie side by side."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def refusal(x: Tensor, weight: Tensor, *others) -> str | None:
    """What no token kernel takes."""
    for tensor in (x, weight, *others):
        if tensor is not None and tensor.dtype not in _triton.PRODUCTS:
            return f"every tensor must have 16 or 32 bits, got {tensor.dtype}"
    *_, S, C = x.shape
    if min(S, C, *weight.shape) == 0:
        return (
            f"has no path for an empty axis, got x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        )
    if C > MAX_CHANNELS:
        return f"takes at most {MAX_CHANNELS} channels, got {C}"
    if weight.numel() >= 2**31:
        return f"takes weights of fewer than 2^31 elements, got {tuple(weight.shape)}"
    return None


def dense(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.contiguous()


def mix(
    weight: Tensor, x: Operand, y: Tensor, bias=None, scale=None, times=NOTHING, residual=NOTHING,
    transposed=False, activation="none",
) -> None:  # fmt: skip
    """Write ``residual + times * scale * activation(weight @ x + bias)``, (B, T, C), into y."""
    B, S, C = x.x.shape
    T = weight.shape[1 if transposed else 0]
    tile, grid = mix_tile(S, T, C, weight.dtype, architecture())
    _triton.launch(
        mix_kernel, B * grid,
        weight.contiguous(), x, y, dense(bias), dense(scale), times, residual, S,
        S=S, T=T, C=C, TRANSPOSED=transposed, ACTIVATION=activation, PRECISION=input_precision(),
        **tile,
    )  # fmt: skip


def mix_tile(S: int, T: int, C: int, dtype: torch.dtype, arch) -> tuple[dict, int]:
    """The tile of a product, and how many an image takes."""
    if dtype == torch.float32:
        tile = {"PIECES": pieces(T, 64), "BLOCK_C": block(C, 64), "BLOCK_S": 16, "num_warps": 4}
    else:
        tile = {
            "PIECES": pieces(T, most(arch)), "BLOCK_C": block(C, channels(arch)),
            "BLOCK_S": block(S, 16 if arch in FROM_REGISTERS else 32), "num_warps": 8,
        }  # fmt: skip
    BLOCK_T = sum(tile["PIECES"])
    tiles = triton.cdiv(T, BLOCK_T) * triton.cdiv(C, tile["BLOCK_C"])
    return tile | {"BLOCK_T": BLOCK_T}, tiles


def channels(arch) -> int:
    """Of a tile of 8 warps that holds up to 256 tokens in 16 bits."""
    return 64 if arch in FROM_REGISTERS else 128


def most(arch) -> int:
    """Tokens of a tile that changes what it loads as well."""
    return 128 if arch in FROM_REGISTERS else MAX_TOKENS
