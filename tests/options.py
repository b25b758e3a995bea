"""Every subset of every op's options, on the smallest inputs that have an inside and a border.

``subsets(name)`` gives the choices, with a shape for each tensor; ``tensors`` makes those, so that
a test can pick dtype and ``requires_grad``; ``arguments`` puts both together for the functional.
"""

import itertools

from shiftmlp import Affine, LayerNorm, Shift

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", None)
SHIFTS = (Shift.S2, Shift.axial(3, "w"), Shift(((1, 1), (-2, 0)), "wrap", "cycle"))

# What each option can be. A tensor is told by its shape.
GRID, TOKENS = (2, 3), (4,)
C, D, O = 3, 2, 3  # noqa: E741
NORMS = (None, (LayerNorm, C), (Affine, C))
POST_NORMS = (None, (LayerNorm, O), (Affine, O))

CHOICES = {
    "spatial_shift": {"x": [(1, *GRID, C)]},
    "shift_linear": {
        "x": [(1, *GRID, C)], "weight": [(O, C)], "bias": [None, (O,)], "scale": [None, (O,)],
        "residual": [None, (1, *GRID, O)],
    },
    "shift_mlp": {
        "x": [(1, *GRID, C)], "w1": [(D, C)], "b1": [None, (D,)], "w2": [(O, D)],
        "b2": [None, (O,)], "norm": NORMS, "post_norm": POST_NORMS, "scale": [None, (O,)],
        "residual": [None, (1, *GRID, O)],
    },
    "token_linear": {
        "x": [(2, *TOKENS, C)], "weight": [(2, *TOKENS)], "bias": [None, (2,)], "norm": NORMS,
        "scale": [None, (C,)], "residual": [None, (2, 2, C)],
    },
    "token_mlp": {
        "x": [(2, *TOKENS, C)], "w1": [(D, *TOKENS)], "b1": [None, (D,)], "w2": [(2, D)],
        "b2": [None, (2,)], "norm": NORMS, "scale": [None, (C,)], "residual": [None, (2, 2, C)],
    },
    "token_gate": {
        "u": [(2, 2, C)], "v": [(2, *TOKENS, C)], "weight": [(2, *TOKENS)], "bias": [None, (2,)],
        "norm": NORMS,
    },
    "channel_mlp": {
        "x": [(5, C)], "w1": [(D, C)], "b1": [None, (D,)], "w2": [(O, D)], "b2": [None, (O,)],
        "norm": NORMS, "post_norm": POST_NORMS, "scale": [None, (O,)], "residual": [None, (5, O)],
    },
}  # fmt: skip

SHIFTING = {"spatial_shift", "shift_linear", "shift_mlp"}
ACTIVATING = {"shift_linear", "shift_mlp", "token_mlp", "channel_mlp"}


def subsets(name: str) -> list[dict]:
    """Every combination of the op's choices; biases come and go together, as do activations
    and shifts with the combination's number, so that each meets most of the others."""
    choices = CHOICES[name]
    found = []
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        if ("b1" in chosen) and (chosen["b1"] is None) != (chosen["b2"] is None):
            continue
        if name in ACTIVATING:
            chosen["activation"] = ACTIVATIONS[len(found) % len(ACTIVATIONS)]
        if name in SHIFTING:
            chosen["shift"] = SHIFTS[len(found) % len(SHIFTS)]
        found.append(chosen)
    if name == "spatial_shift":
        found = [chosen | {"shift": shift} for chosen in found for shift in SHIFTS]
    return found


def label(chosen: dict) -> str:
    """What is on, in words, for a test's id."""
    words = []
    for name, value in chosen.items():
        if name in ("norm", "post_norm"):
            words += [f"{name}:{value[0].__name__}"] if value else []
        elif name == "activation":
            words.append(str(value))
        elif name == "shift":
            words.append(value.border)
        elif value is not None and name not in ("x", "u", "v", "weight", "w1", "w2"):
            words.append(name)
    return "+".join(words) or "bare"


def tensors(chosen: dict, make) -> dict:
    """The option's tensors, by name: "x", "w1", "norm.0" for a norm's weight, and so on."""
    made = {}
    for name, value in chosen.items():
        if name in ("norm", "post_norm"):
            if value is not None:
                made |= {f"{name}.0": make(value[1]), f"{name}.1": make(value[1])}
        elif isinstance(value, tuple):
            made[name] = make(*value)
    return made


def arguments(chosen: dict, made: dict) -> dict:
    """The functional's arguments from ``tensors``' (possibly replaced) values."""
    given = {}
    for name, value in chosen.items():
        if name in ("norm", "post_norm"):
            given[name] = value and value[0](made[f"{name}.0"], made[f"{name}.1"])
        elif isinstance(value, tuple):
            given[name] = made[name]
        else:
            given[name] = value
    return given
