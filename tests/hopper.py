"""Calls of the kernels of csrc/cuda/*_sm90.cu, in the emulator."""

import ctypes

import emulator
from emulator import DTYPES, fenced
from torch import Tensor


class Rows(ctypes.Structure):
    """As in csrc/cuda/product.h: (images, rows, columns), columns dense."""

    _fields_ = [("data", ctypes.c_void_p), ("stride_b", ctypes.c_int64), ("stride", ctypes.c_int64)]

    def __init__(self, t: Tensor | None):
        super().__init__(*((None, 0, 0) if t is None else (t.data_ptr(), *t.stride()[:2])))


class Vector(ctypes.Structure):
    """As in csrc/cuda/product.h."""

    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32)]

    def __init__(self, t: Tensor | None):
        super().__init__(*((None, 0) if t is None else (t.data_ptr(), DTYPES.index(t.dtype))))


class TokenLinearParams(ctypes.Structure):
    """As in csrc/cuda/token_linear_sm90.h."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("x", Rows),
        ("weight", ctypes.c_void_p),
        ("weight_stride", ctypes.c_int64),
        ("bias", Vector),
        *((name, ctypes.c_void_p) for name in ("mean", "rstd")),
        *((name, Vector) for name in ("norm_weight", "norm_bias", "scale")),
        ("residual", Rows),
        ("y", ctypes.c_void_p),
        ("B", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("S", "T", "C")),
    ]


def moments(x: Tensor, eps: float) -> list[Tensor]:
    """LayerNorm's mean and 1 / deviation of every token, between NaNs."""
    deviation = (x.double().var(-1, unbiased=False) + eps).sqrt()
    return [fenced(t.float()) for t in (x.double().mean(-1), 1 / deviation)]


def pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]


def token_linear(
    library, seed, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual, stats=None
) -> Tensor:
    """The kernel's result; RuntimeError with the emulator's message if the run failed."""
    (B, S, C), T = x.shape, weight.shape[0]
    y = fenced(x.new_full((B, T, C), float("nan")))
    if norm == "layer_norm" and stats is None:
        stats = moments(x, eps)
    params = TokenLinearParams(
        DTYPES.index(x.dtype), Rows(x), weight.data_ptr(), weight.stride(0), Vector(bias),
        *pointers(*(stats or (None, None))), Vector(norm_weight), Vector(norm_bias),
        Vector(scale), Rows(residual), y.data_ptr(), B, S, T, C,
    )  # fmt: skip
    emulator.call(library.token_linear_sm90, seed, y, ctypes.byref(params))
    return y
