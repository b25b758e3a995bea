"""What the Triton kernels of several ops share: activations, statistics of rows, ordered sums.

Every sum and every function is evaluated in float32. ``EXACT`` asks for the precision of float32;
without it erf's GELU is within 3e-6, which a 16-bit result cannot tell apart.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from . import _triton
from ._math import allows_tf32

MAX_CHANNELS = 16384  # norm_backward keeps a row in registers
NORM_PROGRAMS = 256  # each sums the norm's gradients over its rows
TILE = 4096  # elements

# Bytes of shared memory a block, by architecture (CUDA programming guide; AMD's have 64 KiB).
SHARED_MEMORY = {80: 166912, 87: 166912, 90: 232448, 100: 232448, 103: 232448, 110: 232448} | {
    arch: 101376 for arch in (86, 89, 120, 121)
}
# Parts whose matrix instructions take both operands from registers, which leaves fewer.
FROM_REGISTERS = (80, 86, 87, 89, 120, 121, "gfx942")


@triton.jit
def zeros(M: tl.constexpr, N: tl.constexpr):
    return tl.zeros((M, N), tl.float32)


@triton.jit
def empty(M: tl.constexpr, PIECES: tl.constexpr):
    """Accumulators of M rows whose columns are dealt to pieces."""
    acc = ()
    for i in tl.static_range(len(PIECES)):
        acc = acc + (zeros(M, PIECES[i]),)
    return acc


@triton.jit
def logistic(x):
    # No exponent is positive, so that nothing overflows.
    e = tl.exp2(-1.4426950408889634 * tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def normal_cdf(x, EXACT: tl.constexpr):
    if EXACT:
        return 0.5 * (1.0 + tl.math.erf(0.7071067811865476 * x))
    # A logistic function of an odd polynomial: the minimax fit to x * cdf(x).
    u = tl.minimum(x * x, 25.0)
    q = 2.20555811e-6 * u - 6.05985092e-5
    q = q * u - 2.52644734e-4
    q = q * u + 7.29425584e-2
    q = q * u + 1.59565433
    return logistic(x * q)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """``activation`` of x, which is float32."""
    if ACTIVATION == "gelu":
        return x * normal_cdf(x, EXACT)
    if ACTIVATION == "gelu_tanh":
        return x * logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACTIVATION == "relu":
        # Not maximum, which drops a NaN.
        return tl.where(x < 0, 0.0, x)
    return x


@triton.jit
def slope(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """The derivative of ``activation`` at x, which is float32."""
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
        return normal_cdf(x, EXACT) + x * density
    if ACTIVATION == "gelu_tanh":
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        inner = 1.5957691216057308 + 0.21406454518080076 * x * x
        # logistic(-z) is 1 - logistic(z) without the cancellation.
        return logistic(z) + x * logistic(z) * logistic(-z) * inner
    if ACTIVATION == "relu":
        return tl.where(x > 0, 1.0, 0.0)
    return tl.full(x.shape, 1.0, tl.float32)


@triton.jit(do_not_specialize=["R"])
def row_statistics_kernel(
    x_ptr,  # (R / S, S, C), strides sB, sS, 1
    mean_ptr, rstd_ptr,  # (R,)
    R, sB, sS, eps,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    x = x_ptr + (row // S * sB + row % S * sS)[:, None]
    c = tl.arange(0, BLOCK_C)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for c0 in range(0, C, BLOCK_C):
        within = (row < R)[:, None] & (c0 + c < C)
        total += tl.load(x + c0 + c, mask=within, other=0.0).to(tl.float32)
    mean = tl.sum(total, 1) / C
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for c0 in range(0, C, BLOCK_C):
        within = (row < R)[:, None] & (c0 + c < C)
        apart = tl.load(x + c0 + c, mask=within, other=0.0).to(tl.float32) - mean[:, None]
        squares += tl.where(within, apart * apart, 0.0)
    rstd = tl.rsqrt(tl.sum(squares, 1) / C + eps)
    tl.store(mean_ptr + row, mean, mask=row < R)
    tl.store(rstd_ptr + row, rstd, mask=row < R)


def row_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm's ``(mean, rstd)``, float32, of the rows of x, which is (B, S, C), dense in C."""
    B, S, C = x.shape
    mean, rstd = x.new_empty(2, B * S, dtype=torch.float32)
    BLOCK_C = min(1024, triton.next_power_of_2(max(C, 1)))
    BLOCK_R = TILE // BLOCK_C if C >= 128 else 32
    _triton.launch(
        row_statistics_kernel, triton.cdiv(B * S, BLOCK_R),
        x, mean, rstd, B * S, *x.stride()[:2], eps,
        S=S, C=C, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C, num_warps=4,
    )  # fmt: skip
    return mean, rstd


@triton.jit(do_not_specialize=["R", "programs"])
def norm_backward_kernel(
    dy_ptr,  # (R, C)
    x_ptr,  # (R / S, S, C), strides sB, sS, 1
    weight_ptr,  # (C,) or None
    dx_ptr,  # (R, C), written only if NEEDS_X
    parts_ptr,  # (programs, 2, C): dweight and dbias of the rows of each program
    R, sB, sS, eps, programs,
    S: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)[None, :]
    weight = 1.0
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for r0 in range(program * BLOCK_R, R, programs * BLOCK_R):
        row = (r0 + tl.arange(0, BLOCK_R))[:, None].to(tl.int64)
        within = (row < R) & (c < C)
        x = tl.load(x_ptr + row // S * sB + row % S * sS + c, mask=within, other=0.0)
        x = x.to(tl.float32)
        dy = tl.load(dy_ptr + row * C + c, mask=within, other=0.0).to(tl.float32)
        dx = dy * weight
        if NORM == "layer_norm":
            apart = tl.where(within, x - (tl.sum(x, 1) / C)[:, None], 0.0)
            rstd = tl.rsqrt(tl.sum(apart * apart, 1) / C + eps)[:, None]
            x = apart * rstd
            # The projection away from the two directions that LayerNorm removes: 1 and x.
            along = x * (tl.sum(dx * x, 1) / C)[:, None]
            dx = rstd * (dx - (tl.sum(dx, 1) / C)[:, None] - along)
        if NEEDS_X:
            tl.store(dx_ptr + row * C + c, dx.to(dx_ptr.dtype.element_ty), mask=within)
        dweight += dy * x
        dbias += dy
    if NEEDS_PARTS:
        part = parts_ptr + program.to(tl.int64) * 2 * C + tl.arange(0, BLOCK_C)
        tl.store(part, tl.sum(dweight, 0), mask=tl.arange(0, BLOCK_C) < C)
        tl.store(part + C, tl.sum(dbias, 0), mask=tl.arange(0, BLOCK_C) < C)


def norm_backward(dy: Tensor, x: Tensor, norm: str, weight, eps: float, needs):
    """``(dx, dweight, dbias)`` of ``norm``; ``needs`` says which, the others are None.

    dy is dense, x is (B, S, C) and dense in C; dweight and dbias are float32.
    """
    dx, *parts = norm_backward_parts(dy, x, norm, weight, eps, needs)
    return dx, *sum_all([(part, torch.float32) for part in parts])


def norm_backward_parts(dy: Tensor, x: Tensor, norm: str, weight, eps: float, needs):
    """``norm_backward``, but of dweight and dbias the parts that ``sum_all`` adds up."""
    if norm == "none":
        return (dy.to(x.dtype) if needs[0] else None), None, None
    B, S, C = x.shape
    BLOCK_C = triton.next_power_of_2(max(C, 1))
    BLOCK_R = max(1, min(32, TILE // BLOCK_C))
    programs = min(NORM_PROGRAMS, triton.cdiv(B * S, BLOCK_R))
    dx = x.new_empty(x.shape if needs[0] else 0)
    parts = x.new_empty((programs, 2, C) if any(needs[1:]) else (0, 2, 0), dtype=torch.float32)
    _triton.launch(
        norm_backward_kernel, programs,
        dy, x, None if weight is None else weight.contiguous(), dx, parts,
        B * S, *x.stride()[:2], eps, programs, S=S, C=C, NORM=norm,
        NEEDS_X=needs[0], NEEDS_PARTS=any(needs[1:]),
        BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C, num_warps=8,
    )  # fmt: skip
    parts = (dx, *parts.unbind(1))
    return tuple(part if need else None for part, need in zip(parts, needs, strict=True))


class Sum(NamedTuple):
    """Parts (N, M), with a stride between them, and where their sum (M,) goes."""

    parts: Tensor
    y: Tensor
    N: int
    M: int
    stride: int


@triton.jit
def sum_parts_kernel(
    sums,  # a tuple of Sum
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    for i in tl.static_range(len(sums)):
        one = sums[i]
        blocks = tl.cdiv(one.M, BLOCK_M)
        if (block >= 0) & (block < blocks):
            m = (block * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]
            n = tl.arange(0, BLOCK_N)[:, None]
            total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for n0 in range(0, one.N, BLOCK_N):
                at = (n0 + n).to(tl.int64) * one.stride + m
                total += tl.load(one.parts + at, mask=(n0 + n < one.N) & (m < one.M), other=0.0)
            y = tl.sum(total, 0, keep_dims=True).to(one.y.dtype.element_ty)
            tl.store(one.y + m, y, mask=m < one.M)
        block -= blocks


def sum_all(wanted) -> list[Tensor | None]:
    """Of each ``(parts, dtype)`` the sum over the first axis, always in the same order.

    Parts are float32 and dense but for their first axis; of None the sum is None.
    """
    sums = []
    for parts, dtype in wanted:
        if parts is not None:
            y = parts.new_empty(parts.shape[1:], dtype=dtype)
            sums.append(Sum(parts, y, len(parts), y.numel(), parts.stride(0)))
    if sums:
        largest = max(sums, key=lambda one: one.M)
        BLOCK_N = min(32, triton.next_power_of_2(max(1, largest.N)))
        BLOCK_M = 1024 // BLOCK_N
        _triton.launch(
            sum_parts_kernel, sum(triton.cdiv(one.M, BLOCK_M) for one in sums),
            tuple(sums), BLOCK_N=BLOCK_N, BLOCK_M=BLOCK_M, num_warps=4,
        )  # fmt: skip
    done = iter(sums)
    return [None if parts is None else next(done).y for parts, _ in wanted]


def sum_parts(parts: Tensor, dtype=torch.float32) -> Tensor:
    """The sum of dense float32 parts over their first axis, always in the same order."""
    return sum_all([(parts, dtype)])[0]


def input_precision() -> str:
    """How float32 products run, as PyTorch is told for its own."""
    return "tf32" if allows_tf32() else "ieee"


def architecture() -> int | str:
    """The current device's: 90 for sm_90, which the interpreter acts as, or "gfx942"."""
    return 90 if _triton.INTERPRETED else driver.active.get_current_target().arch


def shared_memory() -> int:
    """Bytes of shared memory that one block of the current device can have."""
    return SHARED_MEMORY.get(architecture(), 65536)
