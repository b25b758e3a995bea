"""TF32: what it rounds to, and PyTorch's float32 products in it."""

import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shiftmlp.ops import OPS

# Where the two operands begin.
PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


def rounded(t: Tensor) -> Tensor:
    """Float32 on the CPU to 10 bits of fraction, halves away from zero; others as they are."""
    if t.dtype != torch.float32 or not t.is_cpu:
        return t
    bits = t.contiguous().view(torch.int32)
    return torch.where(t.isfinite(), ((bits + 0x1000) & ~0x1FFF).view(torch.float32), t)


def fractions(*shape) -> Tensor:
    """Of 13 bits: TF32 has no such numbers, and an eighth are halves between two of its own. Their
    sums are exact in float32 if they are multiplied by small integers."""
    return (1 + torch.randint(2**13, shape) / 2**13) * (2 * torch.randint(2, shape) - 1)


class OnTheCpu(TorchDispatchMode):
    """Rounds the operands of PyTorch's float32 products on the CPU as tensor cores take them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "shiftmlp":  # whose reference calls more of PyTorch
            with self:
                return OPS[func._opname](*args)
        if (at := PRODUCTS.get(func._opname)) is not None:
            args = *args[:at], *map(rounded, args[at : at + 2]), *args[at + 2 :]
        return func(*args, **kwargs or {})


@contextlib.contextmanager
def allowed():
    """PyTorch is told to take float32 products through TF32, and does so on every device."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with OnTheCpu():
            yield
    finally:
        matmul.fp32_precision = before
