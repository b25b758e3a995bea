"""The matrix product of the channel ops in Triton, with all that stands before and after it.

``linear`` is one pass: the norm and the shift happen as rows are loaded, bias, activation, scale
and residual before the result is stored. ``linear_backward_weight`` sums over the rows in parts
whose number follows from the sizes alone, so that gradients are the same on every run and device.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _triton
from ._triton_math import activate, input_precision, shared_memory, slope, sum_all
from ._triton_rows import affine, as_rows, column, dense, finish, normalize, row
from ._triton_shift import on_load, on_store, source_of, store_moved
from .spatial_shift.triton_kernels import move, pixel_of

HALVES = (torch.bfloat16, torch.float16)
AT_ONCE = 264  # programs: two on each of 132 multiprocessors


@triton.jit(do_not_specialize=["M", "H", "W"])
def linear_kernel(
    x_ptr,  # (M, K), rows sX apart
    mean_ptr,  # (M,), with rstd_ptr for a LayerNorm
    rstd_ptr,
    norm_weight_ptr,  # (K,)
    norm_bias_ptr,  # (K,)
    weight_ptr,  # (N, K), strides sN, sK
    bias_ptr,  # (N,)
    slope_ptr,  # (M, N), contiguous: the product is multiplied by the activation's slope there
    post_weight_ptr,  # (N,)
    post_bias_ptr,  # (N,)
    scale_ptr,  # (N,)
    residual_ptr,  # (M, N), rows sR apart
    y_ptr,  # (M, N), contiguous
    inner_ptr,  # (M, N), contiguous: what enters the activation
    M, H, W, sX, sN, sK, sR,
    end,  # K once more: known when compiled, LLVM would write out every step
    K: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SPLIT: tl.constexpr,
    BORDER: tl.constexpr,
    SPAN: tl.constexpr,  # channels of a block with steps of their own, if x is moved as loaded
    VEC: tl.constexpr,  # channels that move alike, if y is moved as stored
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    first = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)[:, None]
    n0 = tl.program_id(0) % tiles * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)[None, :]
    weight_row = weight_ptr + n.to(tl.int64) * sN
    if SPAN is not None:
        _, h, w = pixel_of(first, tl.arange(0, BLOCK_M)[:, None], H, W)
    mean, rstd = row(mean_ptr, m, M), row(rstd_ptr, m, M)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        source = m
        comes = (m < M) & (k < K)
        if SPAN is not None:
            # One step for the whole tile where it lies in one run of channels: wide loads.
            c = k0 + tl.arange(0, SPAN)[None, :]
            away, inside = source_of(h, w, c, K, H, W, DY, DX, SPLIT, BORDER)
            source = m + away
            comes = comes & inside
        x = tl.load(x_ptr + source * sX + k, mask=comes, other=0.0)
        if NORM:
            x = normalize(x, mean, rstd, k, K, mean_ptr, norm_weight_ptr, norm_bias_ptr)
        down = k0 + tl.arange(0, BLOCK_K)[:, None]
        weight = tl.load(weight_row + down.to(tl.int64) * sK, mask=(down < K) & (n < N), other=0.0)
        acc = tl.dot(x.to(weight.dtype), weight, acc, input_precision=PRECISION)

    within = (m < M) & (n < N)
    at = m * N + n
    if bias_ptr is not None:
        acc += column(bias_ptr, n, N)
    if slope_ptr is not None:
        inner = tl.load(slope_ptr + at, mask=within, other=0.0).to(tl.float32)
        acc *= slope(inner, ACTIVATION, EXACT)
    else:
        if inner_ptr is not None:
            tl.store(inner_ptr + at, acc.to(inner_ptr.dtype.element_ty), mask=within)
        acc = activate(acc, ACTIVATION, EXACT)
    acc = affine(acc, n, N, post_weight_ptr, post_bias_ptr)
    acc = finish(acc, m, n, M, sR, N, scale_ptr, residual_ptr)
    if VEC is not None:
        store_moved(y_ptr, acc, first, n0, M, H, W, N, DY, DX, SPLIT, BORDER, VEC)
    else:
        tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["M", "rows"])
def weight_gradient_kernel(
    dy_ptr,  # (M, O), rows sY apart
    x_ptr,  # (M, K), rows sX apart
    dweight_ptr,  # (parts, O, K), float32
    dbias_ptr,  # (parts, O), float32
    M, rows, sY, sX,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    tiles_k: tl.constexpr = triton.cdiv(K, BLOCK_K) if dweight_ptr is not None else 1
    tiles: tl.constexpr = triton.cdiv(O, BLOCK_O) * tiles_k
    part = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    o = tile // tiles_k * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tile % tiles_k * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    end = tl.minimum((part + 1) * rows, M)

    acc = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    dbias = tl.zeros((BLOCK_O,), tl.float32)
    for m0 in range(part * rows, end, BLOCK_M):
        m = (m0 + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
        dy = tl.load(dy_ptr + m * sY + o[None, :], mask=(m < end) & (o < O)[None, :], other=0.0)
        if dbias_ptr is not None:
            dbias += tl.sum(dy.to(tl.float32), 0)
        if dweight_ptr is not None:
            x = tl.load(x_ptr + m * sX + k, mask=(m < end) & (k < K), other=0.0)
            acc = tl.dot(tl.trans(dy), x.to(dy.dtype), acc, input_precision=PRECISION)

    row = part * O + o
    if dbias_ptr is not None:
        if tile % tiles_k == 0:
            tl.store(dbias_ptr + row, dbias, mask=o < O)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + row[:, None] * K + k, acc, mask=(o < O)[:, None] & (k < K))


def tile(down: int, across: int, along: int, dtype: torch.dtype) -> dict[str, int]:
    """The sides of a program's tile, never far above those of the product, and how it runs."""
    if dtype in HALVES:
        sides = (128, 128, 64) if shared_memory() >= 160 * 1024 else (128, 64, 32)
    else:
        sides = (64, 64, 32)
    sides = [
        max(16, min(side, triton.next_power_of_2(size)))
        for side, size in zip(sides, (down, across, along), strict=True)
    ]
    return dict(zip(("down", "across", "along"), sides, strict=True)) | {
        "num_warps": 8 if max(sides[:2]) == 128 and min(sides[:2]) >= 32 else 4,
        "num_stages": 3,
    }


def linear(
    x, weight, bias=None, *, dtype=None, stats=(None, None), norm=(None, None), shift=None,
    activation="none", slope=None, inner=None, moves=None, post=(None, None), scale=None,
    residual=None,
) -> Tensor:  # fmt: skip
    """``residual + scale * post(act(linear(shift(norm(x)))))``, moved by the shift ``moves``, or
    ``act'(slope) * linear(x)``.

    What enters the activation is written to ``inner`` as well, where that is given.
    """
    N, K = weight.shape
    y = x.new_empty((*x.shape[:-1], N), dtype=dtype or weight.dtype)
    H, W = x.shape[-3:-1] if shift or moves else (1, 1)
    x = as_rows(x)
    M = x.shape[0]
    sides = dict(tile(M, N, K, weight.dtype))
    BLOCK_M, BLOCK_N, BLOCK_K = (sides.pop(side) for side in ("down", "across", "along"))
    is_normed = stats[0] is not None or norm[0] is not None
    # A normed tile passes through registers; more of it spills on sm_100.
    BLOCK_K = min(BLOCK_K, 32) if is_normed else BLOCK_K
    moving = dict.fromkeys(("DY", "DX", "SPLIT", "BORDER", "SPAN", "VEC")) | {"BLOCK_K": BLOCK_K}
    if shift:
        moving |= on_load(shift, K, BLOCK_K)
    together = on_store(moves, N, y.itemsize) if moves else None
    if together:
        moving |= together
    residual = None if residual is None else as_rows(residual)
    _triton.launch(
        linear_kernel,
        triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N),
        x, *stats, *map(dense, norm), weight, dense(bias), slope,
        *map(dense, post), dense(scale), residual, y, inner,
        M, H, W, x.stride(0), *weight.stride(), 0 if residual is None else residual.stride(0), K,
        K=K, N=N, NORM=is_normed, ACTIVATION=activation,
        PRECISION=input_precision(), EXACT=weight.dtype == torch.float32,
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, **moving, **sides,
    )  # fmt: skip
    return move(y, moves, False) if moves and not together else y


@functools.lru_cache(maxsize=1024)
def split(M: int, tiles: int, BLOCK_M: int) -> tuple[int, int]:
    """``(parts, rows)``: the fewest parts, none of fewer than eight blocks of rows, with which a
    GPU is nine tenths busy until the end, or else as busy as can be."""

    def busy(parts: int) -> float:
        return parts * tiles / (triton.cdiv(parts * tiles, AT_ONCE) * AT_ONCE)

    allowed = range(1, max(1, min(AT_ONCE, M // (8 * BLOCK_M))) + 1)
    parts = next((parts for parts in allowed if busy(parts) >= 0.9), max(allowed, key=busy))
    rows = triton.cdiv(triton.cdiv(M, parts), BLOCK_M) * BLOCK_M
    return max(1, triton.cdiv(M, rows)) if rows else 1, rows


def linear_backward_weight(dy: Tensor, x: Tensor | None, dtype, needs) -> tuple:
    """``(dweight, dbias)`` of a linear layer, None for what is not needed; then x may be None."""
    needs_weight, needs_bias = needs
    if not (needs_weight or needs_bias):
        return None, None
    dy = as_rows(dy)
    x = as_rows(x) if needs_weight else dy
    (M, O), K = dy.shape, x.shape[-1]  # noqa: E741
    sides = dict(tile(O, K, M, dy.dtype))
    BLOCK_O, BLOCK_K, BLOCK_M = (sides.pop(side) for side in ("down", "across", "along"))
    tiles = triton.cdiv(O, BLOCK_O) * (triton.cdiv(K, BLOCK_K) if needs_weight else 1)
    parts, rows = split(M, tiles, BLOCK_M)
    dweight = dy.new_empty((parts, O, K), dtype=torch.float32) if needs_weight else None
    dbias = dy.new_empty((parts, O), dtype=torch.float32) if needs_bias else None
    _triton.launch(
        weight_gradient_kernel, parts * tiles, dy, x, dweight, dbias,
        M, rows, dy.stride(0), x.stride(0), O=O, K=K, PRECISION=input_precision(),
        BLOCK_O=BLOCK_O, BLOCK_K=BLOCK_K, BLOCK_M=BLOCK_M, **sides,
    )  # fmt: skip
    return tuple(sum_all([(dweight, dtype), (dbias, dtype)]))


def refuses_dtypes(given: dict) -> str | None:
    for name, value in given.items():
        if isinstance(value, Tensor) and value.dtype not in _triton.PRODUCTS:
            return f"{name} must be bfloat16, float16 or float32, got {value.dtype}"
    return None
