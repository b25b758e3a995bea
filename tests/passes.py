"""The passes of csrc/cuda/passes.h on tensors in the CPU's memory, through the emulator."""

import ctypes

import emulator
import torch
from emulator import ACTIVATIONS, DTYPES, Rows, Vector, fenced
from torch import Tensor

EPS = 1e-6


class Images(ctypes.Structure):
    """As in csrc/cuda/passes.h."""

    _fields_ = [
        ("rows", Rows), ("dtype", ctypes.c_int32), ("images", ctypes.c_int64),
        ("count", ctypes.c_int32), ("columns", ctypes.c_int32),
    ]  # fmt: skip


class NormParams(ctypes.Structure):
    """As in csrc/cuda/passes.h."""

    _fields_ = [
        ("mean", ctypes.c_void_p), ("rstd", ctypes.c_void_p), ("weight", Vector), ("bias", Vector),
    ]  # fmt: skip


class NormBackward(ctypes.Structure):
    """As in csrc/cuda/passes.h."""

    _fields_ = [
        ("dy", Images), ("x", Images), ("norm", NormParams), ("scale", Vector),
        ("dx", ctypes.c_void_p), ("dtype", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("dweight", "dbias", "dscale")),
        ("parts", ctypes.c_int32),
    ]  # fmt: skip


def pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def images(t: Tensor | None) -> Images:
    """(images, rows, columns)"""
    if t is None:
        return Images()
    return Images(Rows.of(t), DTYPES.index(t.dtype), *t.shape)


def norm_params(moments=None, weight=None, bias=None) -> NormParams:
    mean, rstd = moments or (None, None)
    return NormParams(pointer(mean), pointer(rstd), Vector.of(weight), Vector.of(bias))


class Passes:
    """The passes on tensors, in the order of one seed; with results and sums out of alignment."""

    def __init__(self, library, seed=0, shift=0, sums_shift=0):
        self.library, self.seed, self.made = library, seed, []
        self.shift, self.sums_shift = shift, sums_shift

    def result(self, *shape, dtype=torch.float32, shift=0) -> Tensor:
        self.made.append(fenced(torch.full(shape, float("nan"), dtype=dtype), shift))
        return self.made[-1]

    def run(self, name: str, *args) -> None:
        args = [
            ctypes.byref(arg) if isinstance(arg, ctypes.Structure)
            else ctypes.c_void_p(arg.data_ptr()) if isinstance(arg, Tensor)
            else arg
            for arg in args
        ]  # fmt: skip
        emulator.call(getattr(self.library, name), self.seed, *args)
        assert all(map(emulator.fence_stands, self.made)), f"seed {self.seed}: written outside"

    def moments(self, x, eps=EPS):
        mean, rstd = self.result(*x.shape[:2]), self.result(*x.shape[:2])
        self.run("moments", images(x), ctypes.c_float(eps), mean, rstd)
        return mean, rstd

    def layer_norm(self, x, weight, bias, eps=EPS):
        """With the moments, and in x's dtype."""
        mean, rstd = self.result(*x.shape[:2]), self.result(*x.shape[:2])
        y = self.result(*x.shape, dtype=x.dtype, shift=self.shift)
        terms, to = map(Vector.of, (weight, bias)), DTYPES.index(y.dtype)
        self.run("layer_norm", images(x), ctypes.c_float(eps), mean, rstd, *terms, y, to)
        return y, mean, rstd

    def norm(self, x, moments=None, weight=None, bias=None, scale=None, residual=None, dtype=None):
        y = self.result(*x.shape, dtype=dtype or x.dtype, shift=self.shift)
        norm, to = norm_params(moments, weight, bias), DTYPES.index(y.dtype)
        self.run("norm_of_rows", images(x), norm, Vector.of(scale), images(residual), y, to)
        return y

    def norm_backward(self, dy, x, moments, weight, bias, scale, parts=3):
        """dx in x's dtype, dweight, dbias and dscale."""
        dx = self.result(*x.shape, dtype=x.dtype, shift=self.shift)
        sums = self.result(3, parts, x.shape[-1], shift=self.sums_shift)
        norm = norm_params(moments, weight, bias)
        to = [t.data_ptr() for t in (dx, *sums)]
        params = NormBackward(
            images(dy),
            images(x),
            norm,
            Vector.of(scale),
            to[0],
            DTYPES.index(x.dtype),
            *to[1:],
            parts,
        )
        self.run("norm_backward", params)
        return dx, *(self.sum_parts(each) for each in sums)

    def activation_backward(self, dy, scale, x, activation):
        dx = self.result(*x.shape, dtype=x.dtype, shift=self.shift)
        kind, to = ACTIVATIONS.index(activation), DTYPES.index(x.dtype)
        self.run("activation_backward", images(dy), Vector.of(scale), images(x), kind, dx, to)
        return dx

    def sum_rows(self, a, b=None, parts=11, dtype=torch.float32):
        sums = self.result(parts, a.shape[-1])
        self.run("sum_rows", images(a), images(b), sums, parts)
        return self.sum_parts(sums, dtype)

    def sum_columns(self, a, scale=None, b=None, parts=3, dtype=torch.float32):
        sums = self.result(parts, a.shape[1])
        self.run("sum_columns", images(a), Vector.of(scale), images(b), sums, parts)
        return self.sum_parts(sums, dtype)

    def sum_parts(self, parts, dtype=torch.float32):
        sums = self.result(*parts.shape[1:], dtype=dtype)
        n = ctypes.c_int64(sums.numel())
        self.run("sum_parts", parts, len(parts), n, sums, DTYPES.index(dtype))
        return sums
