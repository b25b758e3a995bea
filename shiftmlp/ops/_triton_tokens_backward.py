"""Gradients of products over the tokens in Triton: of the weight, and of what the norm takes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _triton
from ._triton_math import activate, architecture, input_precision, norm_backward, sum_parts
from ._triton_tokens import Operand, block, load, most, pieces, rows, zeros

PARTS = 64  # of a weight's gradient at most, each an fp32 copy of it
PROGRAMS = 512  # that fill a GPU


@triton.jit(do_not_specialize=["B", "parts"])
def weight_gradient_kernel(
    db_ptr,  # (parts, T)
    dw_ptr,  # (parts, T, S) or None
    dy,  # Operand (B, T, C)
    x,  # Operand (B, S, C)
    B, parts,
    S: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    DTYPE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    EXACT: tl.constexpr = DTYPE == tl.float32
    tiles: tl.constexpr = (S + BLOCK_S - 1) // BLOCK_S
    first = tl.program_id(0) % tiles * BLOCK_S
    rest = tl.program_id(0) // tiles
    t = rest % tl.cdiv(T, BLOCK_T) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = rest // tl.cdiv(T, BLOCK_T)

    acc = ()
    for i in tl.static_range(len(PIECES)):
        acc = acc + (zeros(BLOCK_T, PIECES[i]),)
    db = tl.zeros((BLOCK_T,), tl.float32)
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    for step in range(0, tl.cdiv(B * chunks - part, parts)):
        chunk = part + step * parts
        b = (chunk // chunks).to(tl.int64)
        c = chunk % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
        rows = load(dy, b, t[:, None], c[None, :], T, C)
        db += tl.sum(rows.to(tl.float32), 1)
        rows = rows.to(DTYPE)
        if dw_ptr is not None:
            s = first
            sums = ()
            for i in tl.static_range(len(PIECES)):
                columns = load(x, b, (s + tl.arange(0, PIECES[i]))[None, :], c[:, None], S, C)
                if ACTIVATION != "none":
                    columns = activate(columns.to(tl.float32), ACTIVATION, EXACT)
                product = tl.dot(rows, columns.to(DTYPE), acc[i], input_precision=PRECISION)
                sums = sums + (product,)
                s += PIECES[i]
            acc = sums

    if dw_ptr is not None:
        s = first
        for i in tl.static_range(len(PIECES)):
            column = (s + tl.arange(0, PIECES[i]))[None, :]
            at = (part.to(tl.int64) * T + t[:, None]) * S + column
            tl.store(dw_ptr + at, acc[i], mask=(t[:, None] < T) & (column < S))
            s += PIECES[i]
    tl.store(db_ptr + part.to(tl.int64) * T + t, db, mask=(t < T) & (first == 0))


def weight_gradient(dy: Operand, x: Operand, dtype, needs, activation="none"):
    """``(dweight, dbias)`` of a product of ``activation(x)``; ``needs`` says which."""
    if not any(needs):
        return None, None
    (B, T, C), S = dy.x.shape, x.x.shape[1]
    tile = weight_gradient_tile(T, S, C, dtype, architecture())
    tiles = triton.cdiv(T, tile["BLOCK_T"]) * triton.cdiv(S, sum(tile["PIECES"]))
    parts = min(PARTS, triton.cdiv(PROGRAMS, max(tiles, 1)), B * triton.cdiv(C, tile["BLOCK_C"]))
    dw = dy.x.new_empty((parts, T, S), dtype=torch.float32) if needs[0] else None
    db = dy.x.new_empty((parts, T), dtype=torch.float32)
    _triton.launch(
        weight_gradient_kernel, parts * tiles, db, dw, dy, x, B, parts, S=S, T=T, C=C,
        DTYPE=getattr(tl, str(dtype).removeprefix("torch.")), ACTIVATION=activation,
        PRECISION=input_precision(), **tile, BLOCK_S=sum(tile["PIECES"]),
    )  # fmt: skip
    return tuple(
        sum_parts(parts, dtype) if need else None
        for parts, need in zip((dw, db), needs, strict=True)
    )


def weight_gradient_tile(T: int, S: int, C: int, dtype: torch.dtype, arch) -> dict:
    if dtype == torch.float32:
        return {"PIECES": pieces(S, 64), "BLOCK_T": block(T, 64), "BLOCK_C": 16, "num_warps": 4}
    return {
        "PIECES": pieces(S, most(arch)), "BLOCK_T": block(T, 128), "BLOCK_C": block(C, 32),
        "num_warps": 8,
    }  # fmt: skip


def norm_gradient(dnormed: Tensor | None, x: Tensor, norm: str, weight, eps: float, needs):
    """``(dx, dweight, dbias)`` of ``normed``; ``needs`` says which."""
    if dnormed is None:
        return None, None, None
    dx, *rest = norm_backward(dnormed, rows(x), norm, weight, eps, needs)
    return None if dx is None else dx.view(x.shape), *rest
