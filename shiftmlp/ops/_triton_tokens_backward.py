"""Gradients of products over the tokens in Triton: of the weight, and of what the norm takes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _triton
from ._triton_math import (
    activate,
    architecture,
    empty,
    input_precision,
    norm_backward_parts,
    slope,
)
from ._triton_tokens import (
    NOTHING,
    Operand,
    block,
    dense,
    load,
    mix_tile,
    most,
    operand,
    pieces,
    place,
    product,
    rows,
    store,
    vector,
)

# That a weight's gradient is dealt to: one for each multiprocessor of an H200, as they are large
# and a second wave would last as long as the first.
PROGRAMS = 132


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
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (S + BLOCK_S - 1) // BLOCK_S
    first = tl.program_id(0) % tiles * BLOCK_S
    rest = tl.program_id(0) // tiles
    t = rest % tl.cdiv(T, BLOCK_T) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = rest // tl.cdiv(T, BLOCK_T)

    acc = empty(BLOCK_T, PIECES)
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


def weight_gradient(dy: Operand, x: Operand, dtype, needs):
    """For ``sum_all`` the ``(dweight, dbias)`` of a product of x; ``needs`` says which."""
    if not any(needs):
        return (None, dtype), (None, dtype)
    (B, T, C), S = dy.x.shape, x.x.shape[1]
    tile, tiles = weight_gradient_tile(T, S, C, dtype, architecture())
    parts = min(max(1, PROGRAMS // tiles), B * triton.cdiv(C, tile["BLOCK_C"]))
    dw = dy.x.new_empty((parts, T, S), dtype=torch.float32) if needs[0] else None
    db = dy.x.new_empty((parts, T), dtype=torch.float32)
    _triton.launch(
        weight_gradient_kernel, parts * tiles, db, dw, dy, x, B, parts, S=S, T=T, C=C,
        DTYPE=getattr(tl, str(dtype).removeprefix("torch.")), PRECISION=input_precision(), **tile,
    )  # fmt: skip
    return (dw, dtype), (db if needs[1] else None, dtype)


def weight_gradient_tile(T: int, S: int, C: int, dtype: torch.dtype, arch) -> tuple[dict, int]:
    """The tile of a weight's gradient, and how many hold all of it."""
    if dtype == torch.float32:
        tile = {"PIECES": pieces(S, 64), "BLOCK_T": block(T, 64), "BLOCK_C": 16, "num_warps": 4}
    else:
        tile = {
            "PIECES": pieces(S, most(arch)), "BLOCK_T": block(T, 128), "BLOCK_C": block(C, 32),
            "num_warps": 8,
        }  # fmt: skip
    BLOCK_S = sum(tile["PIECES"])
    if arch in (80, 86, 87, 89) and BLOCK_S == 96:
        tile["num_stages"] = 2  # three chunks in flight spill
    if arch in (100, 103, 110, 120, 121):
        tile["maxnreg"] = 255  # or ptxas spills a few to make room for a second program
    tiles = triton.cdiv(T, tile["BLOCK_T"]) * triton.cdiv(S, BLOCK_S)
    return tile | {"BLOCK_S": BLOCK_S}, tiles


@triton.jit
def store_vectors(parts_ptr, dnorm_weight, dnorm_bias, dscale, row, c, C: tl.constexpr):
    at = parts_ptr + row * (3 * C) + c
    tl.store(at, dnorm_weight, mask=c < C)
    tl.store(at + C, dnorm_bias, mask=c < C)
    tl.store(at + 2 * C, dscale, mask=c < C)


@triton.jit
def finish(
    acc, x, dx_ptr, hidden_ptr, factor, b, c, tile,
    T: tl.constexpr,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write ``factor * slope(x) * acc`` and return the sums of ``acc * activation(x)`` and acc."""
    along = tl.zeros(c.shape, tl.float32)
    total = tl.zeros(c.shape, tl.float32)
    t = tile * BLOCK_T
    for i in tl.static_range(len(PIECES)):
        out = (t + tl.arange(0, PIECES[i]))[None, :]
        dx = acc[i]
        if x.x is not None:
            before = load(x, b, out, c, T, C).to(tl.float32)
            after = activate(before, ACTIVATION, EXACT)
            if hidden_ptr is not None:
                store(hidden_ptr, after, b, out, c, T, C)
            along += tl.sum(dx * after, 1, keep_dims=True)
            total += tl.sum(dx, 1, keep_dims=True)
            dx *= slope(before, ACTIVATION, EXACT)
        if dx_ptr is not None:
            store(dx_ptr, dx * factor, b, out, c, T, C)
        t += PIECES[i]
    return along, total


@triton.jit(do_not_specialize=["end"])
def adjoint_kernel(
    w_ptr,  # (S, T)
    dy,  # Operand (B, S, C)
    x,  # Operand (B, T, C) or NOTHING: of the product, before its affine and its activation
    dx_ptr,  # (B, T, C) or None
    hidden_ptr,  # (B, T, C) or None: becomes activation(x)
    alpha_ptr, beta_ptr, scale_ptr,  # (C,) or None
    bias_ptr,  # (S,) or None
    parts_ptr,  # (B, tiles, 3, C) or None: of the gradients of alpha, beta and scale
    end,  # as in mix_kernel
    S: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    EXACT: tl.constexpr = w_ptr.dtype.element_ty == tl.float32
    tiles: tl.constexpr = (T + BLOCK_T - 1) // BLOCK_T
    b, c, tile = place(T, C, BLOCK_C, BLOCK_T)
    acc, of_bias = product(
        w_ptr, dy, bias_ptr, b, c, tile, end, S, T, C, True, PRECISION, BLOCK_S, PIECES, BLOCK_T
    )
    alpha = vector(alpha_ptr, c, C, 1.0)
    scale = vector(scale_ptr, c, C, 1.0)
    along, total = finish(
        acc, x, dx_ptr, hidden_ptr, alpha * scale, b, c, tile, T, C, ACTIVATION, EXACT, PIECES,
        BLOCK_T,
    )  # fmt: skip
    if parts_ptr is not None:
        # As scale * (weight @ (alpha * x + beta) + bias) has them.
        dscale = alpha * along + vector(beta_ptr, c, C, 0.0) * total + of_bias
        store_vectors(parts_ptr, scale * along, scale * total, dscale, b * tiles + tile, c, C)


def adjoint(
    weight: Tensor, dy: Operand, dx: Tensor | None, x=NOTHING, alpha=None, beta=None, scale=None,
    bias=None, sums=False, activation="none", hidden=None,
):  # fmt: skip
    """Write the gradient of x in ``scale * (weight @ activation(alpha * x + beta) + bias)``.

    Returned are the parts of the gradients of alpha, beta and scale if ``sums``, and hidden becomes
    ``activation(x)``. An activation and alpha exclude each other.
    """
    B, S, C = dy.x.shape
    T = weight.shape[1]
    tile, grid = mix_tile(S, T, C, weight.dtype, architecture())
    parts = vector_parts(weight, B * triton.cdiv(T, tile["BLOCK_T"]), C) if sums else None
    _triton.launch(
        adjoint_kernel, B * grid,
        weight.contiguous(), dy, x, dx, hidden, dense(alpha), dense(beta), dense(scale),
        dense(bias) if sums else None, parts, S,
        S=S, T=T, C=C, ACTIVATION=activation, PRECISION=input_precision(), **tile,
    )  # fmt: skip
    return parts


def linear_adjoint(
    weight, dy: Operand, x, tokens: Operand, norm, needs, scale=None, bias=None, needs_scale=False
):
    """dx, and for ``sum_all`` the gradients of the norm's vectors and of scale.

    Of ``scale * (weight @ tokens + bias)``, where tokens are x behind ``norm``: its name, vectors
    and eps. ``needs`` are those of x and the vectors.
    """
    dx = empty_for_adjoint(x, norm, weight.dtype, needs)
    if dx is None and not (any(needs) or needs_scale):
        return None, [(None, torch.float32)] * 3
    name, alpha, beta, _ = norm
    affine = name == "affine"
    sums = needs_scale or affine and any(needs[1:])
    taken = NOTHING
    if sums:
        taken = operand(x) if affine else tokens
    vectors = (alpha, beta) if affine else (None, None)
    parts = adjoint(weight, dy, dx, taken, *vectors, scale, bias, sums)
    return through_norm(dx, x, norm, parts, needs, needs_scale)


def empty_for_adjoint(x: Tensor, norm, dtype, needs) -> Tensor | None:
    """Where the gradient behind the norm goes, in dtype; that of x itself but for LayerNorm."""
    if norm[0] == "layer_norm":
        return x.new_empty(x.shape, dtype=dtype) if any(needs) else None
    return x.new_empty(x.shape) if needs[0] else None


def through_norm(dx: Tensor | None, x: Tensor, norm, parts: Tensor | None, needs, needs_scale):
    """What ``linear_adjoint`` returns, from its dx behind the norm and its parts."""
    name, weight, _, eps = norm
    vectors = [None] * 3 if parts is None else parts.unbind(1)
    if name == "layer_norm" and dx is not None:
        dx, *dnorm = norm_backward_parts(dx, rows(x), name, weight, eps, needs)
        dx, vectors = None if dx is None else dx.view(x.shape), (*dnorm, vectors[2])
    needs = (*needs[1:], needs_scale)
    return dx, [
        (v if need else None, torch.float32) for v, need in zip(vectors, needs, strict=True)
    ]


def vector_parts(like: Tensor, n: int, C: int) -> Tensor:
    return like.new_empty((n, 3, C), dtype=torch.float32)
