"""Small inputs of every op, each chosen for an edge that its name tells.

A sample is a function of ``make(*shape)`` and gives the op's arguments without the backend.
Samples of the backward ops follow from those of the forward ops.
"""

import torch
from torch import Tensor

from shiftmlp import Shift
from shiftmlp.ops import FORWARD, OPS

S2 = Shift.S2.spec
NO_NORM = ("none", None, None, 0.0)


def layer_norm(make, C, eps=1e-6):
    return ("layer_norm", make(C), make(C), eps)


def affine(make, C):
    return ("affine", make(C), make(C), 0.0)


def linears(make, C, D, out):
    return make(D, C), make(D), make(out, D), make(out)


SHIFTS = {
    "s2": Shift.S2,
    "s2-swapped": Shift.S2_SWAPPED,
    "axial-h": Shift.axial(5, "h"),
    "axial-w": Shift.axial(5, "w"),
    "cycle-h": Shift.cycle(3, "h"),
    "cycle-w": Shift.cycle(7, "w"),
    "temporal": Shift.temporal(),
    "partial": Shift.partial(),
    "grid": Shift.grid(),
    "grid-dilated": Shift.grid(3, 2),
    "wrap": Shift(((2, 1), (-1, 3), (0, 0)), "wrap", "chunk"),
    "keep-by-two": Shift(((2, 0), (-2, 0), (0, 2), (0, -2)), "keep", "floor"),
    "keep-diagonal": Shift(((1, 2), (-2, 1)), "keep", "cycle"),
    "zero-diagonal": Shift(((1, -1), (-1, 1)), "zero", "cycle_fold"),
    "beyond-the-map": Shift(((9, 0), (0, -9), (-9, 9)), "keep", "fold"),
}

SAMPLES = {
    "spatial_shift": {
        f"{name}-odd-sides": lambda make, shift=shift: (make(2, 5, 7, 21), shift.spec)
        for name, shift in SHIFTS.items()
    }
    | {
        f"{name}-{label}": lambda make, name=name, shape=shape: (make(*shape), SHIFTS[name].spec)
        for name in ("s2", "axial-w", "keep-diagonal")
        for label, shape in {"one-row": (3, 1, 6, 13), "one-column": (1, 4, 1, 64)}.items()
    }
    | {
        "fewer-channels-than-steps": lambda make: (make(1, 3, 4, 2), Shift.grid().spec),
        "vector-width": lambda make: (make(2, 14, 14, 64), S2),
        "one-map": lambda make: (make(3, 4, 8), S2),
        "five-axes": lambda make: (make(2, 2, 3, 4, 8), S2),
        "empty-batch": lambda make: (make(0, 3, 4, 8), S2),
        "empty-map": lambda make: (make(2, 0, 4, 8), S2),
        "no-channels": lambda make: (make(2, 3, 4, 0), S2),
    },
    "shift_linear": {
        "odd-sides": lambda m: (m(2, 5, 7, 10), m(12, 10), m(12), S2, "none", None, None),
        "all-options": lambda m: (
            m(1, 3, 4, 9), m(7, 9), m(7), Shift.axial(3, "w").spec, "gelu", m(7), m(1, 3, 4, 7),
        ),
        "no-bias-relu": lambda m: (
            m(2, 4, 4, 16), m(16, 16), None, Shift.cycle(3, "h").spec, "relu", m(16), None,
        ),
        "tanh": lambda m: (m(1, 2, 3, 8), m(8, 8), m(8), S2, "gelu_tanh", None, m(1, 2, 3, 8)),
        "one-pixel": lambda m: (m(1, 1, 1, 4), m(1, 4), m(1), S2, "none", None, None),
        "empty-batch": lambda m: (m(0, 3, 3, 8), m(4, 8), m(4), S2, "gelu", m(4), m(0, 3, 3, 4)),
    },
    "shift_mlp": {
        "paper": lambda m: (
            m(2, 5, 3, 12), *NO_NORM, *linears(m, 12, 12, 12), S2, "gelu", *layer_norm(m, 12),
            None, m(2, 5, 3, 12),
        ),
        "port": lambda m: (
            m(1, 4, 4, 16), *layer_norm(m, 16), *linears(m, 16, 24, 16), S2, "gelu", *NO_NORM,
            m(16), m(1, 4, 4, 16),
        ),
        "affine-both": lambda m: (
            m(1, 3, 5, 10), *affine(m, 10), *linears(m, 10, 9, 6), Shift.grid().spec, "gelu_tanh",
            *affine(m, 6), m(6), None,
        ),
        "bare": lambda m: (
            m(2, 3, 3, 8), *NO_NORM, m(8, 8), None, m(8, 8), None, S2, "relu", *NO_NORM, None, None,
        ),
        "empty-batch": lambda m: (
            m(0, 3, 3, 8), *layer_norm(m, 8), *linears(m, 8, 8, 8), S2, "gelu", *affine(m, 8),
            m(8), m(0, 3, 3, 8),
        ),
    },
    "token_linear": {
        "resmlp": lambda m: (m(2, 49, 24), *affine(m, 24), m(49, 49), m(49), m(24), m(2, 49, 24)),
        "odd-tokens": lambda m: (m(3, 7, 20), *layer_norm(m, 20), m(7, 7), m(7), None, m(3, 7, 20)),
        "fewer-tokens-out": lambda m: (m(2, 9, 8), *NO_NORM, m(4, 9), None, m(8), None),
        "one-token": lambda m: (m(2, 1, 16), *NO_NORM, m(1, 1), m(1), None, None),
        "no-batch-axis": lambda m: (m(6, 8), *affine(m, 8), m(6, 6), m(6), None, m(6, 8)),
        "empty-batch": lambda m: (m(0, 5, 8), *affine(m, 8), m(5, 5), m(5), m(8), m(0, 5, 8)),
    },
    "token_mlp": {
        "mixer": lambda m: (
            m(2, 49, 24), *layer_norm(m, 24), *linears(m, 49, 32, 49), "gelu", None, m(2, 49, 24),
        ),
        "odd-sizes": lambda m: (
            m(3, 7, 13), *affine(m, 13), *linears(m, 7, 11, 7), "gelu_tanh", m(13), m(3, 7, 13),
        ),
        "other-width": lambda m: (
            m(2, 6, 16), *NO_NORM, m(8, 6), None, m(4, 8), None, "relu", m(16), m(2, 4, 16),
        ),
        "no-activation": lambda m: (
            m(1, 5, 8), *layer_norm(m, 8, 1e-5), *linears(m, 5, 4, 5), "none", None, None,
        ),
        "weightless-norm": lambda m: (
            m(2, 4, 8), "layer_norm", None, None, 1e-6, *linears(m, 4, 8, 4), "gelu", None, None,
        ),
        "empty-batch": lambda m: (
            m(0, 5, 8), *layer_norm(m, 8), *linears(m, 5, 4, 5), "gelu", m(8), m(0, 5, 8),
        ),
    },
    "token_gate": {
        "gmlp": lambda m: (m(2, 49, 24), m(2, 49, 24), *layer_norm(m, 24, 1e-5), m(49, 49), m(49)),
        "odd": lambda m: (m(3, 7, 5), m(3, 7, 5), *affine(m, 5), m(7, 7), None),
        "fewer-tokens-out": lambda m: (m(2, 4, 8), m(2, 6, 8), *NO_NORM, m(4, 6), m(4)),
        "empty-batch": lambda m: (m(0, 4, 8), m(0, 4, 8), *layer_norm(m, 8), m(4, 4), m(4)),
    },
    "channel_mlp": {
        "mixer": lambda m: (
            m(2, 7, 24), *layer_norm(m, 24), *linears(m, 24, 40, 24), "gelu", *NO_NORM, None,
            m(2, 7, 24),
        ),
        "post-norm": lambda m: (
            m(1, 3, 5, 12), *NO_NORM, *linears(m, 12, 20, 12), "gelu", *layer_norm(m, 12),
            None, m(1, 3, 5, 12),
        ),
        "resmlp": lambda m: (
            m(3, 4, 10), *affine(m, 10), *linears(m, 10, 7, 10), "gelu_tanh", *NO_NORM, m(10),
            m(3, 4, 10),
        ),
        "bare": lambda m: (
            m(5, 6), *NO_NORM, m(9, 6), None, m(3, 9), None, "relu", *affine(m, 3), m(3), None,
        ),
        "empty-batch": lambda m: (
            m(0, 4, 8), *layer_norm(m, 8), *linears(m, 8, 8, 8), "gelu", *NO_NORM, m(8), m(0, 4, 8),
        ),
    },
}  # fmt: skip


def backward_sample(forward, sample):
    """The sample of ``forward``'s backward op that wants every gradient."""

    def make_backward(make):
        args = sample(make)
        given = dict(zip(forward.names, args, strict=False))
        y = forward.kernels["reference"][0](*args)
        saved = [given[name] for name in forward.saved]
        needs = [given[name] is not None for name in forward.asked]
        return (make(*y.shape), *saved, needs)

    return make_backward


for _forward in FORWARD:
    SAMPLES[_forward.backward.name] = {
        name: backward_sample(_forward, sample) for name, sample in SAMPLES[_forward.name].items()
    }

assert set(SAMPLES) == set(OPS)


def convert(args, change) -> list:
    """The arguments with every tensor changed."""
    return [change(arg) if isinstance(arg, Tensor) else arg for arg in args]


def randn(dtype=torch.float64, device="cpu"):
    return lambda *shape: torch.randn(shape, dtype=torch.float64).to(device, dtype)
