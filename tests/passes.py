"""The passes of csrc/cuda/passes.h on tensors in the CPU's memory, through the emulator."""

import emulator
import torch
from emulator import fenced
from torch import Tensor

EPS = 1e-6


class Passes:
    """The passes on tensors, in the order of one seed; with results and sums out of alignment."""

    def __init__(self, library, seed=0, shift=0, sums_shift=0):
        self.library, self.seed, self.made = library, seed, []
        self.shift, self.sums_shift = shift, sums_shift

    def result(self, *shape, dtype=torch.float32, shift=0) -> Tensor:
        self.made.append(fenced(torch.full(shape, float("nan"), dtype=dtype), shift))
        return self.made[-1]

    def run(self, name: str, *args) -> None:
        getattr(self.library, name)(self.seed, *args)
        assert all(map(emulator.fence_stands, self.made)), f"seed {self.seed}: written outside"

    def moments(self, x, eps=EPS):
        mean, rstd = self.result(*x.shape[:2]), self.result(*x.shape[:2])
        self.run("moments", x, eps, mean, rstd)
        return mean, rstd

    def layer_norm(self, x, weight, bias, eps=EPS):
        """With the moments, and in x's dtype."""
        mean, rstd = self.result(*x.shape[:2]), self.result(*x.shape[:2])
        y = self.result(*x.shape, dtype=x.dtype, shift=self.shift)
        self.run("layer_norm", x, eps, mean, rstd, weight, bias, y)
        return y, mean, rstd

    def norm(self, x, moments=None, weight=None, bias=None, scale=None, residual=None, dtype=None):
        y = self.result(*x.shape, dtype=dtype or x.dtype, shift=self.shift)
        self.run("norm_of_rows", x, *(moments or (None, None)), weight, bias, scale, residual, y)
        return y

    def norm_backward(self, dy, x, moments, weight, bias, scale, parts=3, dtype=None):
        """dx, dweight, dbias and dscale."""
        dx = self.result(*x.shape, dtype=dtype or x.dtype, shift=self.shift)
        sums = self.result(3, parts, x.shape[-1], shift=self.sums_shift)
        norm = *(moments or (None, None)), weight, bias
        self.run("norm_backward", dy, x, *norm, scale, dx, *sums)
        return dx, *(self.sum_parts(each) for each in sums)

    def activation_backward(self, dy, scale, x, activation, dtype=None):
        dx = self.result(*x.shape, dtype=dtype or x.dtype, shift=self.shift)
        self.run("activation_backward", dy, scale, x, activation, dx)
        return dx

    def sum_rows(self, a, b=None, parts=11, dtype=torch.float32):
        sums = self.result(parts, a.shape[-1])
        self.run("sum_rows", a, b, sums)
        return self.sum_parts(sums, dtype)

    def sum_columns(self, a, scale=None, b=None, parts=3, dtype=torch.float32):
        sums = self.result(parts, a.shape[1])
        self.run("sum_columns", a, scale, b, sums)
        return self.sum_parts(sums, dtype)

    def sum_parts(self, parts, dtype=torch.float32):
        sums = self.result(*parts.shape[1:], dtype=dtype)
        self.run("sum_parts", parts, sums)
        return sums
