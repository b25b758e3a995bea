"""What spatial_shift means. Every other kernel is tested against this file.

Source: S2-MLP, arXiv 2106.07477, Algorithm 1 read as simultaneous assignment; borders and channel
splits of its relatives are those of ``Shift``. Always out of place: written in place on overlapping
views, as much published PyTorch code does, it computes something else.
"""

import torch
from torch import Tensor

from ...shift import Shift
from .op import spatial_shift as op


def shift_map(x: Tensor, shift: Shift) -> Tensor:
    """(..., H, W, C) with every run of channels moved by its step."""
    return _by_runs(move, x, shift)


def shift_map_backward(dy: Tensor, shift: Shift) -> Tensor:
    return _by_runs(move_backward, dy, shift)


def move(x: Tensor, step: tuple[int, int], border: str) -> Tensor:
    """x with its content ``step = (dy, dx)`` further down and right."""
    if border == "wrap":
        return torch.roll(x, step, (-3, -2))
    rows, columns = (_Axis(s, size) for s, size in zip(step, x.shape[-3:-1], strict=True))
    entering = x if border == "keep" else torch.zeros_like(x)
    moved = x[..., rows.source, columns.source, :]
    moved = columns.join(entering[..., rows.target, columns.border, :], moved, -2)
    return rows.join(entering[..., rows.border, :, :], moved, -3)


def move_backward(dy: Tensor, step: tuple[int, int], border: str) -> Tensor:
    """The adjoint of ``move``. With "keep" it is not a shift: a kept pixel was read by itself and,
    unless its content left the map, by the pixel that its content went to."""
    back = (-step[0], -step[1])
    if border == "wrap":
        return move(dy, back, "wrap")
    moved = move(dy, back, "zero")
    if border == "zero":
        return moved
    rows, columns = (_Axis(s, size) for s, size in zip(step, dy.shape[-3:-1], strict=True))
    nothing = torch.zeros_like(dy[..., rows.target, columns.target, :])
    kept = columns.join(dy[..., rows.target, columns.border, :], nothing, -2)
    return moved + rows.join(dy[..., rows.border, :, :], kept, -3)


class _Axis:
    """One axis of a step: where content comes from, where it lands, and the border left behind."""

    def __init__(self, step: int, size: int):
        step = max(-size, min(step, size))
        self.border_first = step >= 0
        if self.border_first:
            self.source, self.target = slice(0, size - step), slice(step, size)
            self.border = slice(0, step)
        else:
            self.source, self.target = slice(-step, size), slice(0, size + step)
            self.border = slice(size + step, size)

    def join(self, border: Tensor, moved: Tensor, dim: int) -> Tensor:
        return torch.cat([border, moved] if self.border_first else [moved, border], dim)


def _by_runs(function, x: Tensor, shift: Shift) -> Tensor:
    runs = shift.runs(int(x.shape[-1]))  # a compiled program is for these channels
    parts = [function(x[..., begin:end], step, shift.border) for begin, end, *step in runs]
    return torch.cat(parts, -1) if parts else x.clone()


@op.kernel("reference")
def spatial_shift(x: Tensor, shift: str) -> Tensor:
    return shift_map(x, Shift.from_spec(shift)).contiguous()


@op.backward.kernel("reference")
def spatial_shift_backward(dy: Tensor, shift: str, needs: list[bool]) -> list[Tensor]:
    return [shift_map_backward(dy, Shift.from_spec(shift)).contiguous()]
