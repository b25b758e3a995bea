"""Registers the compiled kernels, and what every one of them asks of its arguments."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _native
from ._op import Op, never

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def attach(op: Op, backend: str, launch: Callable, refuses: Callable = never, dtypes=None) -> None:
    """Makes ``launch`` the kernel of ``op`` on "cpu" or "cuda", where its library can run."""

    def refused(*inputs) -> str | None:
        if reason := _native.why_not(backend):
            return reason
        for name, tensor in zip(op.names, inputs, strict=False):
            if isinstance(tensor, Tensor):
                if tensor.device.type != backend:
                    return f"{name} must be on {backend}, got {tensor.device}"
                if tensor.layout != torch.strided or tensor.is_quantized:
                    return f"{name} must be dense, got {tensor.dtype} in {tensor.layout}"
        if backend == "cuda" and (reason := _native.lacks_image(inputs[0].device)):
            return reason
        return refuses(*inputs)

    op.kernel(backend, refused, dtypes=dtypes)(launch)


def refuses_mixture(*inputs) -> str | None:
    """float64 is summed by an engine of its own."""
    dtypes = {arg.dtype for arg in inputs if isinstance(arg, Tensor)}
    if torch.float64 in dtypes and len(dtypes) > 1:
        return f"float64 must not mix with other dtypes, got {sorted(map(str, dtypes))}"
    return None


def images(x: Tensor | None, axes: int = 2) -> Tensor | None:
    """x with its batch in one axis; a view where there is one."""
    if x is None or x.dim() == axes + 1:
        return x
    return x.reshape(math.prod(x.shape[:-axes]), *x.shape[-axes:])
