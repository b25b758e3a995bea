"""What the channel ops do with rows apart from their products, each in one pass.

Channels are (M, N) here, one row for a pixel or token.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _triton
from ._triton_math import activate, row_statistics, slope, sum_parts

PROGRAMS = 256  # each sums the scale's gradient over its rows
TILE = 4096  # elements


def as_rows(x: Tensor) -> Tensor:
    """(rows, channels), dense along the channels; a copy only where no view can be that."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def statistics(x: Tensor, norm: str, eps: float) -> tuple:
    """``(mean, rstd)`` of x's rows; None where the norm has none."""
    return row_statistics(as_rows(x)[None], eps) if norm == "layer_norm" else (None, None)


@triton.jit
def column(ptr, n, N: tl.constexpr):
    """A vector of N for the columns ``n`` of a tile."""
    return tl.load(ptr + n, mask=n < N, other=0.0).to(tl.float32)


@triton.jit
def row(ptr, m, M):
    """A vector of M for the rows ``m`` of a tile; 0.0 without one."""
    values = 0.0
    if ptr is not None:
        values = tl.load(ptr + m, mask=m < M, other=0.0)
    return values


@triton.jit
def affine(x, n, N: tl.constexpr, weight_ptr, bias_ptr):
    """``x * weight + bias`` of a tile in float32; either may be None."""
    if weight_ptr is not None:
        x *= column(weight_ptr, n, N)
    if bias_ptr is not None:
        x += column(bias_ptr, n, N)
    return x


@triton.jit
def finish(y, m, n, M, sR, N: tl.constexpr, scale_ptr, residual_ptr):
    """``residual + scale * y`` of a tile in float32; either may be None."""
    if scale_ptr is not None:
        y *= column(scale_ptr, n, N)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + m * sR + n, mask=(m < M) & (n < N), other=0.0)
        y += residual.to(tl.float32)
    return y


@triton.jit
def normalize(x, mean, rstd, n, N: tl.constexpr, mean_ptr, weight_ptr, bias_ptr):
    """The norm of a tile in float32: a LayerNorm if ``mean_ptr`` is there, else an affine map."""
    x = x.to(tl.float32)
    if mean_ptr is not None:
        x = (x - mean) * rstd
    return affine(x, n, N, weight_ptr, bias_ptr)


@triton.jit(do_not_specialize=["M"])
def norm_kernel(
    x_ptr,  # (M, N), rows sX apart
    mean_ptr,  # (M,), with rstd_ptr for a LayerNorm
    rstd_ptr,
    weight_ptr,  # (N,)
    bias_ptr,  # (N,)
    scale_ptr,  # (N,)
    residual_ptr,  # (M, N), rows sR apart
    y_ptr,  # (M, N), contiguous
    M, sX, sR,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    within = (m < M) & (n < N)
    x = tl.load(x_ptr + m * sX + n, mask=within, other=0.0)
    mean, rstd = row(mean_ptr, m, M), row(rstd_ptr, m, M)
    y = normalize(x, mean, rstd, n, N, mean_ptr, weight_ptr, bias_ptr)
    y = finish(y, m, n, M, sR, N, scale_ptr, residual_ptr)
    tl.store(y_ptr + m * N + n, y.to(y_ptr.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["M", "programs"])
def scale_backward_kernel(
    dy_ptr,  # (M, N), rows sY apart
    x_ptr,  # (M, N), contiguous: what entered the activation or the norm
    mean_ptr,  # (M,), with rstd_ptr for a LayerNorm
    rstd_ptr,
    weight_ptr,  # (N,)
    bias_ptr,  # (N,)
    scale_ptr,  # (N,)
    dx_ptr,  # (M, N), contiguous: the gradient before the scale, and before the activation
    dscale_ptr,  # (programs, N), float32
    M, programs, sY,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = tl.cdiv(N, BLOCK_N)
    program = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    dscale = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for m0 in range(program * BLOCK_M, M, programs * BLOCK_M):
        m = (m0 + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
        within = (m < M) & (n < N)
        dy = tl.load(dy_ptr + m * sY + n, mask=within, other=0.0).to(tl.float32)
        dx = dy
        if scale_ptr is not None:
            dx *= column(scale_ptr, n, N)
        if x_ptr is not None:
            x = tl.load(x_ptr + m * N + n, mask=within, other=0.0)
            mean, rstd = row(mean_ptr, m, M), row(rstd_ptr, m, M)
            x = normalize(x, mean, rstd, n, N, mean_ptr, weight_ptr, bias_ptr)
            if ACTIVATION != "none":
                dx *= slope(x, ACTIVATION, EXACT)
            if dscale_ptr is not None:
                dscale += tl.where(within, dy * activate(x, ACTIVATION, EXACT), 0.0)
        if dx_ptr is not None:
            tl.store(dx_ptr + m * N + n, dx.to(dx_ptr.dtype.element_ty), mask=within)
    if dscale_ptr is not None:
        total = tl.sum(dscale, 0, keep_dims=True)
        tl.store(dscale_ptr + program * N + n, total, mask=n < N)


def tile(N: int) -> dict[str, int]:
    BLOCK_N = min(512, triton.next_power_of_2(N))
    return {"BLOCK_M": min(32, TILE // BLOCK_N), "BLOCK_N": BLOCK_N}


def normalize_rows(x, stats, weight, bias, dtype, scale=None, residual=None) -> Tensor:
    """``residual + scale * norm(x)``."""
    y = x.new_empty(x.shape, dtype=dtype)
    x = as_rows(x)
    residual = None if residual is None else as_rows(residual)
    (M, N), blocks = x.shape, tile(x.shape[-1])
    _triton.launch(
        norm_kernel, triton.cdiv(M, blocks["BLOCK_M"]) * triton.cdiv(N, blocks["BLOCK_N"]),
        x, *stats, dense(weight), dense(bias), dense(scale), residual, y,
        M, x.stride(0), 0 if residual is None else residual.stride(0),
        N=N, **blocks, num_warps=4,
    )  # fmt: skip
    return y


def scale_backward(
    dy, x, scale, dtype, needs, *, activation="none", stats=(None, None), norm=(None, None)
) -> tuple:
    """``(dx, dscale)`` of ``scale * activation(norm(x))``, but for the norm, whose own backward
    goes on from dx; x may be None where neither an activation nor dscale asks for it."""
    needs_x, needs_scale = needs
    if needs_x and not needs_scale and scale is None and activation == "none":
        return dy.to(dtype), None
    if not (needs_x or needs_scale):
        return None, None
    dx = dy.new_empty(dy.shape, dtype=dtype) if needs_x else None
    dy = as_rows(dy)
    (M, N), blocks = dy.shape, tile(dy.shape[-1])
    programs = max(1, min(PROGRAMS, triton.cdiv(M, blocks["BLOCK_M"])))
    dscale = dy.new_empty((programs, N), dtype=torch.float32) if needs_scale else None
    _triton.launch(
        scale_backward_kernel, programs * triton.cdiv(N, blocks["BLOCK_N"]),
        dy, x, *stats, *map(dense, norm), dense(scale), dx, dscale, M, programs, dy.stride(0),
        N=N, ACTIVATION=activation, EXACT=dtype == torch.float32, **blocks, num_warps=4,
    )  # fmt: skip
    return dx, sum_parts(dscale) if needs_scale else None
