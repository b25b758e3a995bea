"""The way to Triton: kernel files are imported on first use, and launched in one place.

A kernel file defines a launcher for its op and one for the backward, each of its op's name, and
``refuses`` and ``refuses_backward`` for what only it knows; they are asked on a GPU tensor of a
dtype that it takes. Its COMPILE_CASES name inputs, on the meta device, whose machine code is
inspected where there is no GPU.
"""

import functools
import importlib
import os
from contextlib import nullcontext

import torch
from torch import Tensor

from ._op import never

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
PRODUCTS = FLOATS[:3]  # the dtypes of what is multiplied by a matrix
OLDEST = (3, 6)

# Triton decides the same when a kernel file is imported, so it is decided once here as well.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def attach(op, module: str, dtypes=FLOATS, slower=never) -> None:
    """Register the Triton kernels of ``op`` and of its backward, which live in ``module``."""
    for one, refuses in ((op, "refuses"), (op.backward, "refuses_backward")):
        one.kernel("triton", _refuser(one, module, refuses), _slower(one, slower), dtypes)(
            _launcher(module, one.name)
        )


def why_not() -> str | None:
    """Why no Triton kernel can run in this process, or None if they can."""
    if reason := _no_triton():
        return reason
    if not (INTERPRETED or torch.cuda.is_available()):
        return "there is no GPU"
    return None


def launch(kernel, grid: int, *args, **constants) -> None:
    """Run ``grid`` programs on the device of the first tensor, on the current stream there.

    The first argument is a tensor or a tuple that begins with one.
    """
    if grid == 0:
        return
    first = args[0]
    while isinstance(first, tuple):
        first = first[0]
    device = first.device
    # Triton launches on the current device, wherever the pointers are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(grid,)](*args, **constants)


def _launcher(module: str, name: str):
    def run(*inputs):
        return getattr(importlib.import_module(module), name)(*inputs)

    return run


def _refuser(op, module: str, name: str):
    def refuses(first: Tensor, *inputs) -> str | None:
        if reason := _no_gpu(op.names[0], first.device) or _no_triton():
            return reason
        for other, value in zip(op.names[1:], inputs, strict=False):
            if isinstance(value, Tensor) and value.device != first.device:
                return f"{other} is on {value.device}, {op.names[0]} on {first.device}"
        return getattr(importlib.import_module(module), name)(first, *inputs)

    return refuses


def _slower(op, slower):
    def in_this_process(*inputs) -> str | None:
        if INTERPRETED:
            return "the interpreter is for tests"
        if op.weight is not None and inputs[op.weight].dtype == torch.float32:
            # The library's float32 products are hard to beat, with or without TF32.
            return not_measured()
        return slower(*inputs)

    return in_this_process


def not_measured(*inputs) -> str:
    """The ``slower`` of a kernel that competes with a library's and has not yet been timed."""
    return "not yet measured faster than the reference on a GPU"


@functools.cache
def _no_gpu(name: str, device: torch.device) -> str | None:
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"{name} is on {device.type}, not on a GPU"
    found = torch.cuda.get_device_capability(device)
    return None if found >= (8, 0) else f"the GPU has capability {found}, Triton wants (8, 0)"


@functools.cache
def _no_triton() -> str | None:
    try:
        import triton
    except Exception as error:  # a broken installation raises anything
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"triton must be at least {OLDEST[0]}.{OLDEST[1]}, got {triton.__version__}"
    return None
