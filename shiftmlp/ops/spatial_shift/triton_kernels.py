"""spatial_shift in Triton: each vector of the result is read once, from where it comes from.

Where the channels of a group of VEC move alike, the group is one access up to 16 bytes wide; where
they do not ("cycle"), the loads are single and the stores still are vectors. The step of a channel
is computed, as in ``Shift.step``: the steps are constants of the kernel, so that no table has to be
read first, and none is kept on a device, where it could outlive a CUDA graph's memory pool.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...shift import Shift
from .. import _triton
from .._triton_math import slope

MAX_STEPS = 128  # each step is two selections in the kernel
TILE_BYTES = 8192  # four 16-byte vectors in flight for each of 128 threads
ROW_BYTES = 1024  # at least eight pixels in a tile


@triton.jit
def step_of(c, C, DY: tl.constexpr, DX: tl.constexpr, SPLIT: tl.constexpr):
    """``Shift.step``: how far channels ``c`` of ``C`` move down and right."""
    N: tl.constexpr = len(DY)
    if SPLIT == "floor":
        # int64, as c * N passes 2^31 at 16 million channels.
        step = ((c.to(tl.int64) + 1) * N - 1) // C
    elif SPLIT == "chunk":
        step = c // tl.cdiv(C, N)
    elif SPLIT == "fold":
        step = c // tl.maximum(C // N, 1)
    else:
        step = c % N
    dy = tl.zeros_like(c)
    dx = tl.zeros_like(c)
    for n in tl.static_range(N):
        dy = tl.where(step == n, DY[n], dy)
        dx = tl.where(step == n, DX[n], dx)
    if SPLIT == "fold" or SPLIT == "cycle_fold":
        moves = c < C // N * N
        dy = tl.where(moves, dy, 0)
        dx = tl.where(moves, dx, 0)
    return dy, dx


@triton.jit
def pixel_of(first, i, H, W):
    """(b, h, w) of the pixels ``first + i``; only the first of them takes a 64-bit division."""
    w = (first % W).to(tl.int32) + i
    h = (first // W % H).to(tl.int32) + w // W
    return first // W // H + h // H, h % H, w % W


@triton.jit
def reach(at, step, size, WRAP: tl.constexpr):
    """How far ``step`` leads along an axis from ``at``, and whether it ends within the map."""
    by = step
    if WRAP:
        by = step % size
        by = tl.where(at + by < 0, by + size, tl.where(at + by >= size, by - size, by))
    # A sum past 2^31 comes out negative, which is outside as well.
    return by, (at + by >= 0) & (at + by < size)


@triton.jit(do_not_specialize=["P", "H", "W", "G", "sB", "sH", "sW"])
def spatial_shift_kernel(
    x_ptr,  # (B, H, W, G, VEC), strides in groups of VEC: sB, sH, sW, 1
    y_ptr,  # (B, H, W, G, VEC), contiguous
    inner_ptr,  # (B, H, W, G, VEC), contiguous: y is multiplied by the activation's slope there
    P, H, W, G, sB, sH, sW,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SPLIT: tl.constexpr,
    BORDER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIKE: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(G, BLOCK_G)
    first = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_P
    i = tl.arange(0, BLOCK_P)[:, None, None]
    g = (tl.program_id(0) % tiles * BLOCK_G + tl.arange(0, BLOCK_G))[None, :, None]
    v = tl.arange(0, VEC)[None, None, :]
    within = (first + i < P) & (g < G)  # [BLOCK_P, BLOCK_G, 1]
    b, h, w = pixel_of(first, i, H, W)
    c = g * VEC if ALIKE else g * VEC + v
    dy, dx = step_of(c, G * VEC, DY, DX, SPLIT)  # [1, BLOCK_G, 1 or VEC]

    by_h, inside_h = reach(h, -dy, H, BORDER == "wrap")
    by_w, inside_w = reach(w, -dx, W, BORDER == "wrap")
    away = by_h.to(tl.int64) * sH + by_w.to(tl.int64) * sW
    comes = within
    if BORDER == "keep":
        away = tl.where(inside_h & inside_w, away, 0)
    elif BORDER != "wrap":
        comes = within & inside_h & inside_w
    pixel = x_ptr + (b * sB + h.to(tl.int64) * sH + w.to(tl.int64) * sW + g) * VEC
    y = tl.load(pixel + away * VEC + v, mask=comes, other=0.0)  # [BLOCK_P, BLOCK_G, VEC]

    if BORDER == "keep_backward":
        # Steps lead back here, so a pixel kept its value where nothing lies one step ahead of it.
        _, had_h = reach(h, dy, H, False)
        _, had_w = reach(w, dx, W, False)
        kept = tl.load(pixel + v, mask=within & ~(had_h & had_w), other=0.0)
        ACC: tl.constexpr = tl.float64 if y.dtype == tl.float64 else tl.float32
        y = y.to(ACC) + kept.to(ACC)

    target = ((first + i) * G + g) * VEC + v
    if inner_ptr is not None:
        inner = tl.load(inner_ptr + target, mask=within, other=0.0)
        y = y.to(tl.float32) * slope(inner.to(tl.float32), ACTIVATION, inner.dtype == tl.float32)
    tl.store(y_ptr + target, y.to(y_ptr.dtype.element_ty), mask=within)


@functools.lru_cache(maxsize=1024)
def constants(spec: str, C: int, backward: bool) -> tuple[dict, int]:
    """What a shift is to the kernel, and the largest group of channels that never splits a run."""
    shift = Shift.from_spec(spec)
    sign = -1 if backward else 1
    steps = {
        "DY": tuple(sign * dy for dy, _ in shift.steps),
        "DX": tuple(sign * dx for _, dx in shift.steps),
    }
    border = "keep_backward" if backward and shift.border == "keep" else shift.border
    edges = math.gcd(*(end for _, end, _, _ in shift.runs(C)))
    return steps | {"SPLIT": shift.split, "BORDER": border}, edges


def tile(G: int, VEC: int, itemsize: int) -> dict[str, int]:
    """A long row of groups for whole cache lines, unless more than an eighth of it lies outside."""
    row = max(1, min(ROW_BYTES // (VEC * itemsize), triton.next_power_of_2(G)))
    while row > 1 and triton.cdiv(G, row) * row > G * 9 / 8:
        row //= 2
    return {"BLOCK_P": TILE_BYTES // (row * VEC * itemsize), "BLOCK_G": row}


def move(x: Tensor, shift: str, backward: bool, inner=None, activation="none") -> Tensor:
    """x, or for the backward its gradient, moved by ``shift`` into a fresh contiguous tensor.

    With ``inner``, which is contiguous, times the slope of ``activation`` there.
    """
    y = x.new_empty(x.shape)
    *leading, H, W, C = x.shape
    if y.numel() == 0:
        return y
    if x.stride(-1) != 1:
        x = x.contiguous()
    # A copy only where no view can join the leading dimensions.
    x = x.reshape(math.prod(leading), H, W, C)
    steps, edges = constants(shift, C, backward)
    strides = x.stride()[:3]
    VEC = math.gcd(C, *strides, 16 // x.itemsize)
    alike = math.gcd(edges, VEC)
    VEC = alike if alike > 1 else VEC
    P, G = x.shape[0] * H * W, C // VEC
    blocks = tile(G, VEC, x.itemsize)
    _triton.launch(
        spatial_shift_kernel,
        triton.cdiv(P, blocks["BLOCK_P"]) * triton.cdiv(G, blocks["BLOCK_G"]),
        x, y, inner, P, H, W, G, *(stride // VEC for stride in strides),
        **steps, ACTIVATION=activation, ALIKE=VEC == alike, VEC=VEC, **blocks, num_warps=4,
    )  # fmt: skip
    return y


def refuses(x: Tensor, shift: str, *needs) -> str | None:
    if max(x.shape[-3:]) >= 2**30:
        return f"has no path for an axis of 2^30 or more, got {tuple(x.shape)}"
    steps = len(Shift.from_spec(shift).steps)
    return f"takes at most {MAX_STEPS} steps, got {steps}" if steps > MAX_STEPS else None


refuses_backward = refuses


def spatial_shift(x: Tensor, shift: str) -> Tensor:
    return move(x, shift, backward=False)


def spatial_shift_backward(dy: Tensor, shift: str, needs: list[bool]) -> list[Tensor]:
    return [move(dy, shift, backward=True)]


def _meta(*shape, dtype=torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


COMPILE_CASES = {
    "S2 bf16 14x14x384": (spatial_shift, (_meta(128, 14, 14, 384), Shift.S2.spec)),
    "S2 fp32 14x14x384": (
        spatial_shift, (_meta(128, 14, 14, 384, dtype=torch.float32), Shift.S2.spec)
    ),
    "S2 backward bf16 14x14x384": (
        spatial_shift_backward, (_meta(128, 14, 14, 384), Shift.S2.spec, [True])
    ),
    "axial(5, h) bf16 56x56x96": (
        spatial_shift, (_meta(32, 56, 56, 96), Shift.axial(5, "h").spec)
    ),
    "cycle(7, w) bf16 7x7x64": (spatial_shift, (_meta(32, 7, 7, 64), Shift.cycle(7, "w").spec)),
    "grid(5) bf16 14x14x384": (spatial_shift, (_meta(32, 14, 14, 384), Shift.grid(5).spec)),
}  # fmt: skip
