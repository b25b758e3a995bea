"""Calls of the kernels of csrc/cuda/*_sm90.cu, in the emulator."""

import ctypes

import emulator
import torch
from emulator import DTYPES, fenced
from torch import Tensor

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu")  # as in csrc/activation.h


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


class Tokens(ctypes.Structure):
    """As in csrc/cuda/tokens_sm90.h."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("x", Rows),
        *((name, ctypes.c_void_p) for name in ("mean", "rstd")),
        *((name, Vector) for name in ("norm_weight", "norm_bias", "scale")),
        ("residual", Rows),
        ("y", ctypes.c_void_p),
        ("B", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("S", "T", "C")),
    ]


class TokenLinear(Tokens):
    _fields_ = [("weight", ctypes.c_void_p), ("weight_stride", ctypes.c_int64), ("bias", Vector)]


class TokenMlp(Tokens):
    _fields_ = [
        *(("w1", ctypes.c_void_p), ("w1_stride", ctypes.c_int64), ("b1", Vector)),
        *(("w2", ctypes.c_void_p), ("w2_stride", ctypes.c_int64), ("b2", Vector)),
        *(("activation", ctypes.c_int32), ("D", ctypes.c_int32), ("workspace", ctypes.c_void_p)),
    ]


def moments(x: Tensor, eps: float) -> list[Tensor]:
    """LayerNorm's mean and 1 / deviation of every token, between NaNs."""
    deviation = (x.double().var(-1, unbiased=False) + eps).sqrt()
    return [fenced(t.float()) for t in (x.double().mean(-1), 1 / deviation)]


def tokens(x, norm_weight, norm_bias, scale, residual, stats, weight) -> tuple:
    """The fields of Tokens, and y. Nothing is kept alive for their pointers but y."""
    (B, S, C), T = x.shape, len(weight)
    y = fenced(x.new_full((B, T, C), float("nan")))
    mean, rstd = [t.data_ptr() for t in stats or ()] or (None, None)
    vectors = map(Vector, (norm_weight, norm_bias, scale))
    first = DTYPES.index(x.dtype), Rows(x), mean, rstd, *vectors
    return (*first, Rows(residual), y.data_ptr(), B, S, T, C), y


def token_linear(
    library, seed, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual, stats=None
) -> Tensor:
    """The kernel's result; ``stats`` in the place of LayerNorm's mean and 1 / deviation."""
    if norm == "layer_norm" and stats is None:
        stats = moments(x, eps)
    first, y = tokens(x, norm_weight, norm_bias, scale, residual, stats, weight)
    params = TokenLinear(*first, weight.data_ptr(), weight.stride(0), Vector(bias))
    emulator.run(library.token_linear_sm90, seed, y, ctypes.byref(params))
    return y


def token_mlp(
    library, seed, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    scale, residual, stats=None,
) -> Tensor:  # fmt: skip
    """The same of two linears."""
    if norm == "layer_norm" and stats is None:
        stats = moments(x, eps)
    first, y = tokens(x, norm_weight, norm_bias, scale, residual, stats, w2)
    params = TokenMlp(
        *first, w1.data_ptr(), w1.stride(0), Vector(b1), w2.data_ptr(), w2.stride(0), Vector(b2),
        ACTIVATIONS.index(activation), len(w1),
    )  # fmt: skip
    library.token_mlp_workspace_bytes.restype = ctypes.c_int64
    size = library.token_mlp_workspace_bytes(ctypes.byref(params))
    workspace = fenced(torch.full((size // 4,), float("nan")))
    params.workspace = workspace.data_ptr()
    emulator.run(library.token_mlp_sm90, seed, y, ctypes.byref(params))
    assert emulator.fence_stands(workspace), f"seed {seed}: written outside of the workspace"
    return y


class TokenMlpBackward(TokenMlp):
    _fields_ = [
        *(("dy", Rows), ("normed", Rows)),
        *((name, ctypes.c_void_p) for name in ("hidden", "dhidden", "dx")),
        *((name, ctypes.c_void_p) for name in ("dnorm_weight", "dnorm_bias", "db1")),
    ]


def token_mlp_backward(
    library, seed, dy, x, norm, norm_weight, norm_bias, w1, b1, w2, activation, scale, stats, normed
) -> dict[str, Tensor]:  # fmt: skip
    """Its results by name, of which the last three are summed over their parts."""
    (B, S, C), T, D = x.shape, len(w2), len(w1)
    parts = -(-C // 64) * 4 * B
    shapes = {"hidden": (B, D, C), "dhidden": (B, D, C), "dx": (B, S, C)}
    sums = {"db1": (parts, D)}
    sums |= {} if norm == "none" else {"dnorm_weight": (B, C), "dnorm_bias": (B, C)}
    made = {name: fenced(x.new_full(shape, float("nan"))) for name, shape in shapes.items()}
    made |= {name: fenced(torch.full(shape, float("nan"))) for name, shape in sums.items()}
    mean, rstd = [t.data_ptr() for t in stats or ()] or (None, None)
    params = TokenMlpBackward(
        DTYPES.index(x.dtype), Rows(x), mean, rstd, Vector(norm_weight), Vector(norm_bias),
        Vector(scale), Rows(None), None, B, S, T, C,
        w1.data_ptr(), w1.stride(0), Vector(b1), w2.data_ptr(), w2.stride(0), Vector(None),
        ACTIVATIONS.index(activation), D, None, Rows(dy), Rows(normed),
        **{name: t.data_ptr() for name, t in made.items()},
    )  # fmt: skip
    library.token_mlp_workspace_bytes.restype = ctypes.c_int64
    size = library.token_mlp_workspace_bytes(ctypes.byref(params))
    workspace = fenced(torch.full((size // 4,), float("nan")))
    params.workspace = workspace.data_ptr()
    emulator.call(library.token_mlp_backward_sm90, seed, ctypes.byref(params))
    for name, t in {**made, "workspace": workspace}.items():
        assert emulator.fence_stands(t), f"seed {seed}: written outside of {name}"
    return {name: made[name].sum(0) if name in sums else made[name] for name in made}
