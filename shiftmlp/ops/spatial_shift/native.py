"""Hands spatial_shift to the compiled kernels of csrc/cpu and csrc/cuda."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...shift import Shift
from .._native import FLOATS, attach
from .._op import Op
from .op import spatial_shift as op

MAX_STEPS, MAX_SIDE = 64, 2**24  # csrc/shift.h


def refuses(x: Tensor, shift: str, *needs) -> str | None:
    if max(x.shape[-3:]) > MAX_SIDE:
        return f"H, W and C must be at most {MAX_SIDE}, got {tuple(x.shape[-3:])}"
    steps = len(Shift.from_spec(shift).steps)
    return f"takes at most {MAX_STEPS} steps, got {steps}" if steps > MAX_STEPS else None


def refusal_of(other: Op) -> Callable:
    """The same of another op, which shifts too."""
    x, shift = other.names.index("x"), other.names.index("shift")
    return lambda *inputs: refuses(inputs[x], inputs[shift])


def attach_library(backend: str) -> None:
    library = getattr(torch.ops, f"shiftmlp_{backend}")

    def forward(x: Tensor, shift: str) -> Tensor:
        return library.spatial_shift(x, shift)

    def backward(dy: Tensor, shift: str, needs: list[bool]) -> list[Tensor]:
        return [library.spatial_shift_backward(dy, shift)]

    attach(op, backend, forward, refuses)
    attach(op.backward, backend, backward, refuses, FLOATS)


attach_library("cpu")
attach_library("cuda")
