"""A linear layer and a LayerNorm after it in Triton, or their adjoints, where rows are short.

A program holds whole rows of the product, dealt to pieces that are powers of two, so the norm ends
what the product began and nothing is written between them. Longer rows take two kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _triton
from ._triton_gemm import HALVES, linear
from ._triton_math import architecture, empty, norm_backward, sum_all
from ._triton_rows import (
    affine,
    as_rows,
    column,
    dense,
    finish,
    normalize,
    normalize_rows,
    row,
    statistics,
)

MOST = 512  # columns


@triton.jit
def products(
    x_ptr, weight_ptr, m, M, end, sX, sN, sK,
    K: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows m of ``x @ weight.T`` in float32, a tile for each piece of the N columns."""
    acc = empty(BLOCK_M, PIECES)
    for k0 in range(0, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        down = k0 + tl.arange(0, BLOCK_K)[:, None]
        x = tl.load(x_ptr + m * sX + k, mask=(m < M) & (k < K), other=0.0)
        x = x.to(weight_ptr.dtype.element_ty)
        sums = ()
        n0 = 0
        for i in tl.static_range(len(PIECES)):
            n = (n0 + tl.arange(0, PIECES[i]))[None, :]
            at = n.to(tl.int64) * sN + down.to(tl.int64) * sK
            weight = tl.load(weight_ptr + at, mask=(down < K) & (n < N), other=0.0)
            sums = sums + (tl.dot(x, weight, acc[i]),)
            n0 += PIECES[i]
        acc = sums
    return acc


@triton.jit(do_not_specialize=["M"])
def linear_norm_kernel(
    x_ptr,  # (M, K), rows sX apart
    weight_ptr,  # (N, K), strides sN, sK
    bias_ptr,  # (N,)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    scale_ptr,  # (N,)
    residual_ptr,  # (M, N), rows sR apart
    y_ptr,  # (M, N), contiguous
    M, sX, sN, sK, sR, eps,
    end,  # K once more: known when compiled, LLVM would write out every step
    K: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    acc = products(x_ptr, weight_ptr, m, M, end, sX, sN, sK, K, N, PIECES, BLOCK_M, BLOCK_K)

    mean = tl.zeros((BLOCK_M, 1), tl.float32)
    ys = ()
    n0 = 0
    for i in tl.static_range(len(PIECES)):
        y = acc[i]
        if bias_ptr is not None:
            y += column(bias_ptr, (n0 + tl.arange(0, PIECES[i]))[None, :], N)
        mean += tl.sum(y, 1, keep_dims=True) / N
        ys = ys + (y,)
        n0 += PIECES[i]
    variance = tl.zeros((BLOCK_M, 1), tl.float32)
    n0 = 0
    for i in tl.static_range(len(PIECES)):
        n = (n0 + tl.arange(0, PIECES[i]))[None, :]
        apart = tl.where(n < N, ys[i] - mean, 0.0)
        variance += tl.sum(apart * apart, 1, keep_dims=True) / N
        n0 += PIECES[i]
    rstd = tl.rsqrt(variance + eps)

    n0 = 0
    for i in tl.static_range(len(PIECES)):
        n = (n0 + tl.arange(0, PIECES[i]))[None, :]
        within = (m < M) & (n < N)
        y = affine((ys[i] - mean) * rstd, n, N, norm_weight_ptr, norm_bias_ptr)
        y = finish(y, m, n, M, sR, N, scale_ptr, residual_ptr)
        tl.store(y_ptr + m * N + n, y.to(y_ptr.dtype.element_ty), mask=within)
        n0 += PIECES[i]


@triton.jit(do_not_specialize=["M"])
def linear_norm_backward_kernel(
    dy_ptr,  # (M, K), rows sY apart
    weight_ptr,  # (N, K), strides sN, sK
    x_ptr,  # (M, N), rows sX apart: what was normalised
    mean_ptr,  # (M,), with rstd_ptr for a LayerNorm
    rstd_ptr,
    norm_weight_ptr,  # (N,)
    dx_ptr,  # (M, N), contiguous
    parts_ptr,  # (programs, 2, N), float32: the norm's gradients of the rows of each program
    M, sY, sN, sK, sX,
    end,  # K once more, as above
    K: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    acc = products(dy_ptr, weight_ptr, m, M, end, sY, sN, sK, K, N, PIECES, BLOCK_M, BLOCK_K)
    mean, rstd = row(mean_ptr, m, M), row(rstd_ptr, m, M)

    across = tl.zeros((BLOCK_M, 1), tl.float32)
    along = tl.zeros((BLOCK_M, 1), tl.float32)
    n0 = 0
    for i in tl.static_range(len(PIECES)):
        n = (n0 + tl.arange(0, PIECES[i]))[None, :]
        dy = acc[i]
        x = tl.load(x_ptr + m * sX + n, mask=(m < M) & (n < N), other=0.0)
        x = normalize(x, mean, rstd, n, N, mean_ptr, None, None)
        if parts_ptr is not None:
            part = parts_ptr + tl.program_id(0).to(tl.int64) * 2 * N + n
            tl.store(part, tl.sum(dy * x, 0, keep_dims=True), mask=n < N)
            tl.store(part + N, tl.sum(dy, 0, keep_dims=True), mask=n < N)
        if norm_weight_ptr is not None:
            dy *= column(norm_weight_ptr, n, N)
        across += tl.sum(dy, 1, keep_dims=True) / N
        along += tl.sum(dy * x, 1, keep_dims=True) / N
        n0 += PIECES[i]
    if dx_ptr is not None:
        n0 = 0
        for i in tl.static_range(len(PIECES)):
            n = (n0 + tl.arange(0, PIECES[i]))[None, :]
            within = (m < M) & (n < N)
            dx = acc[i]
            if norm_weight_ptr is not None:
                dx *= column(norm_weight_ptr, n, N)
            if mean_ptr is not None:
                # The projection away from the two directions that LayerNorm removes: 1 and x.
                x = tl.load(x_ptr + m * sX + n, mask=within, other=0.0)
                x = normalize(x, mean, rstd, n, N, mean_ptr, None, None)
                dx = rstd * (dx - across - x * along)
            tl.store(dx_ptr + m * N + n, dx.to(dx_ptr.dtype.element_ty), mask=within)
            n0 += PIECES[i]


def pieces(n: int) -> tuple[int, ...]:
    """Powers of two of at most 128 that hold n columns; wider ones take more registers."""
    whole, rest = divmod(n, 128)
    return (128,) * whole + ((max(16, triton.next_power_of_2(rest)),) if rest else ())


def row_tile(N: int, K: int, dtype: torch.dtype, arch) -> dict | None:
    """The tile of a program that holds whole rows of a product; None where two kernels do better:
    other parts spill, and so do rows that cannot be loaded 16 bytes at a time."""
    if dtype not in HALVES or not 0 < N <= MOST or N % 16 or K % 16 or arch != 90:
        return None
    BLOCK_K = max(16, min(64, triton.next_power_of_2(max(K, 1))))
    return {
        "PIECES": pieces(N), "BLOCK_M": 64, "BLOCK_K": BLOCK_K, "num_warps": 8, "num_stages": 3,
    }  # fmt: skip


def linear_norm(
    x, weight, bias, norm_weight, norm_bias, eps, dtype, scale=None, residual=None
) -> Tensor:
    """``residual + scale * layer_norm(linear(x))``."""
    N, K = weight.shape
    tile = row_tile(N, K, weight.dtype, architecture())
    if tile is None:
        branch = linear(x, weight, bias)
        stats = statistics(branch, "layer_norm", eps)
        return normalize_rows(branch, stats, norm_weight, norm_bias, dtype, scale, residual)
    y = x.new_empty((*x.shape[:-1], N), dtype=dtype)
    x = as_rows(x)
    residual = None if residual is None else as_rows(residual)
    _triton.launch(
        linear_norm_kernel, triton.cdiv(x.shape[0], tile["BLOCK_M"]),
        x, weight, dense(bias), dense(norm_weight), dense(norm_bias), dense(scale), residual, y,
        x.shape[0], x.stride(0), *weight.stride(), 0 if residual is None else residual.stride(0),
        eps, K, K=K, N=N, **tile,
    )  # fmt: skip
    return y


def linear_norm_backward(dy, weight, x, norm, norm_weight, eps, stats, needs) -> tuple:
    """``(dx, dweight, dbias)`` of a norm of x, where ``dy @ weight.T`` is the gradient of what it
    made; ``needs`` says which, the others are None. The norm's gradients are float32."""
    N, K = weight.shape
    tile = row_tile(N, K, weight.dtype, architecture())
    if tile is None or norm == "none":
        return norm_backward(linear(dy, weight), as_rows(x)[None], norm, norm_weight, eps, needs)
    dx = x.new_empty(x.shape) if needs[0] else None
    x, dy = as_rows(x), as_rows(dy)
    programs = triton.cdiv(x.shape[0], tile["BLOCK_M"])
    parts = x.new_empty((programs, 2, N), dtype=torch.float32) if any(needs[1:]) else None
    _triton.launch(
        linear_norm_backward_kernel, programs,
        dy, weight, x, *stats, dense(norm_weight), dx, parts,
        x.shape[0], dy.stride(0), *weight.stride(), x.stride(0), K, K=K, N=N, **tile,
    )  # fmt: skip
    vectors = (None, None) if parts is None else parts.unbind(1)
    wanted = [
        (v if need else None, torch.float32) for v, need in zip(vectors, needs[1:], strict=True)
    ]
    return dx, *sum_all(wanted)
