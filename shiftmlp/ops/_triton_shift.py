"""The shift inside a product in Triton: as rows are loaded, or as they are stored.

A product over channels that a shift moves apart has to gather them pixel by pixel; a product that
makes such channels stores each vector of them where it goes, and the next one reads whole rows.
"""

import math

import triton
import triton.language as tl

from .spatial_shift.triton_kernels import constants, pixel_of, reach, step_of


@triton.jit
def source_of(
    h, w, c, C, H, W, DY: tl.constexpr, DX: tl.constexpr, SPLIT: tl.constexpr, BORDER: tl.constexpr
):  # fmt: skip
    """How many pixels further channels ``c`` of pixel (h, w) come from, and whether they do."""
    dy, dx = step_of(c, C, DY, DX, SPLIT)
    by_h, inside_h = reach(h, -dy, H, BORDER == "wrap")
    by_w, inside_w = reach(w, -dx, W, BORDER == "wrap")
    inside = inside_h & inside_w
    away = tl.where(inside, by_h.to(tl.int64) * W + by_w, 0)
    return away, inside | (BORDER != "zero")


@triton.jit
def store_moved(
    y_ptr, y, first, c0, M, H, W,
    C: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SPLIT: tl.constexpr,
    BORDER: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """Store a tile of an (M, C), whose first row and channel are given, where the shift moves it.

    Here too a pixel to which nothing comes gets what enters at the border.
    """
    BLOCK_M: tl.constexpr = y.shape[0]
    GROUPS: tl.constexpr = y.shape[1] // VEC
    y = tl.reshape(y.to(y_ptr.dtype.element_ty), (BLOCK_M, GROUPS, VEC))
    i = tl.arange(0, BLOCK_M)[:, None, None]
    c = c0 + (tl.arange(0, GROUPS) * VEC)[None, :, None]
    within = (first + i < M) & (c < C)
    _, h, w = pixel_of(first, i, H, W)
    dy, dx = step_of(c, C, DY, DX, SPLIT)
    stays = y_ptr + (first + i) * C + c + tl.arange(0, VEC)[None, None, :]

    by_h, inside_h = reach(h, dy, H, BORDER == "wrap")
    by_w, inside_w = reach(w, dx, W, BORDER == "wrap")
    away = (by_h.to(tl.int64) * W + by_w) * C
    tl.store(stays + away, y, mask=within & inside_h & inside_w)
    if BORDER != "wrap":
        _, comes_h = reach(h, -dy, H, False)
        _, comes_w = reach(w, -dx, W, False)
        enters = y if BORDER == "keep" else tl.zeros_like(y)
        tl.store(stays, enters, mask=within & ~(comes_h & comes_w))


def on_load(shift: str, C: int, BLOCK: int) -> dict:
    """The kernel's constants for a product over C channels in blocks of at most BLOCK.

    A block whose channels move alike has a SPAN of 1, one whose channels may not its own length;
    each of these is loaded alone, and more than 32 spill on sm_80.
    """
    steps, edges = constants(shift, C, False)
    alike = BLOCK if edges == C else math.gcd(edges, BLOCK)
    block, span = (alike, 1) if alike >= min(16, BLOCK) else (min(BLOCK, 32),) * 2
    return steps | {"BLOCK_K": block, "SPAN": span, "VEC": None}


def on_store(shift: str, C: int, itemsize: int) -> dict | None:
    """The kernel's constants for a product that makes C channels, VEC of which move alike.

    None where so few do that to store them one by one costs more than to move them afterwards.
    """
    steps, edges = constants(shift, C, False)
    vec = math.gcd(edges, 16 // itemsize)
    return steps | {"SPAN": None, "VEC": vec} if vec * itemsize >= 8 else None
