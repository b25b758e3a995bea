"""Hands spatial_shift to the compiled kernels of csrc/cpu and csrc/cuda."""

import torch
from torch import Tensor

from ... import _native
from ...shift import Shift
from .op import spatial_shift as op

MAX_STEPS, MAX_SIDE = 64, 2**24  # csrc/shift.h
SUMMED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _refuses(backend: str):
    def refuses(x: Tensor, shift: str) -> str | None:
        if reason := _native.why_not(backend):
            return reason
        if x.device.type != backend:
            return f"x must be on {backend}, got {x.device}"
        if backend == "cuda" and (reason := _native.lacks_image(x.device)):
            return reason
        if x.layout != torch.strided or x.is_quantized:
            return f"x must be dense, got {x.dtype} in {x.layout}"
        if max(x.shape[-3:]) > MAX_SIDE:
            return f"H, W and C must be at most {MAX_SIDE}, got {tuple(x.shape[-3:])}"
        steps = len(Shift.from_spec(shift).steps)
        return f"takes at most {MAX_STEPS} steps, got {steps}" if steps > MAX_STEPS else None

    return refuses


def _backward_refuses(backend: str):
    refuses = _refuses(backend)
    return lambda dy, shift, needs: refuses(dy, shift)


@op.kernel("cpu", _refuses("cpu"))
def spatial_shift_cpu(x: Tensor, shift: str) -> Tensor:
    return torch.ops.shiftmlp_cpu.spatial_shift(x, shift)


@op.backward.kernel("cpu", _backward_refuses("cpu"), dtypes=SUMMED)
def spatial_shift_backward_cpu(dy: Tensor, shift: str, needs: list[bool]) -> list[Tensor]:
    return [torch.ops.shiftmlp_cpu.spatial_shift_backward(dy, shift)]


@op.kernel("cuda", _refuses("cuda"))
def spatial_shift_cuda(x: Tensor, shift: str) -> Tensor:
    return torch.ops.shiftmlp_cuda.spatial_shift(x, shift)


@op.backward.kernel("cuda", _backward_refuses("cuda"), dtypes=SUMMED)
def spatial_shift_backward_cuda(dy: Tensor, shift: str, needs: list[bool]) -> list[Tensor]:
    return [torch.ops.shiftmlp_cuda.spatial_shift_backward(dy, shift)]
