"""What is timed: each op at the sizes of published models, the most important first.

A case knows its tensors' shapes, and from them its work: floating point operations of the matrix
products, and the least bytes any kernel must move (every input read once, every result written).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import OPS
from . import baselines

DIRECTIONS = ("fwd", "bwd", "fwd_bwd")
_NORM = {"norm_weight": "C", "norm_bias": "C"}
_CHANNELS = {"w1": "DC", "b1": "D", "w2": "CD", "b2": "C"}

# One letter a size, B the batch. The first tensor has the shape of the result.
SHAPES = {
    "token_mlp": {"x": "BSC", **_NORM, "w1": "DS", "b1": "D", "w2": "SD", "b2": "S"},
    "token_linear": {"x": "BSC", **_NORM, "weight": "SS", "bias": "S", "scale": "C"},
    "token_gate": {"u": "BSC", "v": "BSC", **_NORM, "weight": "SS", "bias": "S"},
    "shift_mlp": {"x": "BHWC", **_NORM, **_CHANNELS},
    "shift_linear": {"x": "BHWC", "weight": "CC", "bias": "C"},
    "spatial_shift": {"x": "BHWC"},
    "channel_mlp": {"x": "BSC", **_NORM, **_CHANNELS},
}


@dataclass(frozen=True)
class Case:
    """One op at one model's sizes; ``batch`` and dtype come with each call."""

    op: str
    model: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        return " ".join([self.model, *(f"{letter}{size}" for letter, size in self.sizes)])

    def eager(self, dtype: torch.dtype) -> Callable:
        """Unfused PyTorch on the case's tensors by name."""
        return baselines.EAGER[self.op]

    def ours(self, backend: str, dtype: torch.dtype) -> Callable:
        return baselines.ours(self.op, backend)

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        sizes = dict(self.sizes) | {"B": batch}
        return {
            name: tuple(sizes[letter] for letter in letters)
            for name, letters in SHAPES[self.op].items()
        }

    def inputs(self, batch: int, dtype, device, seed: int = 0) -> dict[str, Tensor]:
        """Random tensors of the size that trained weights and normed activations have."""
        generator = torch.Generator(device).manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes(batch).items():
            values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            if len(shape) == 1:
                values = 0.1 * values + (name in ("norm_weight", "scale"))
            elif len(shape) == 2:
                values /= math.sqrt(shape[1])
            tensors[name] = values.to(dtype)
        return tensors

    def flops(self, batch: int, direction: str) -> int:
        op, shapes = OPS[self.op], self.shapes(batch)
        forward = op.flops(**shapes)
        needs = [True] * len(op.asked)
        backward = op.backward.flops(dy=next(iter(shapes.values())), needs=needs, **shapes)
        return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward}[direction]

    def bytes(self, batch: int, direction: str, itemsize: int) -> int:
        shapes = self.shapes(batch)
        numel = {name: math.prod(shape) for name, shape in shapes.items()}
        inputs, result = sum(numel.values()), next(iter(numel.values()))
        saved = sum(numel[name] for name in numel if name in self._saved())
        moved = {"fwd": inputs + result, "bwd": result + saved + inputs}
        moved["fwd_bwd"] = moved["fwd"] + moved["bwd"]
        return moved[direction] * itemsize

    def _saved(self) -> set[str]:
        """What the backward reads besides dy: the gradient of a bias asks for nothing more."""
        return set(OPS[self.op].saved) - {"bias", "b2"}


@dataclass(frozen=True)
class Job:
    """A case with everything that makes it a measurement of its own."""

    case: Case
    batch: int
    dtype: torch.dtype
    direction: str
    threads: int | None = None  # of the CPU; None leaves them as they are

    def __str__(self):
        text = f"{self.case.op} {self.case.name} b{self.batch} {self.dtype_name} {self.direction}"
        return text if self.threads is None else f"{text} {self.threads} threads"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def _case(op: str, model: str, **sizes: int) -> Case:
    return Case(op, model, tuple(sizes.items()))


CASES = (
    _case("token_mlp", "Mixer-B/16", S=196, C=768, D=384),
    _case("token_linear", "ResMLP-S24", S=196, C=384),
    _case("shift_mlp", "S2-MLP-deep", H=14, W=14, C=384, D=384),
    _case("channel_mlp", "Mixer-B/16", S=196, C=768, D=3072),
    _case("spatial_shift", "S2-MLP-deep", H=14, W=14, C=384),
    _case("shift_linear", "S2-MLP-deep", H=14, W=14, C=384),
    _case("token_gate", "gMLP-S/16", S=196, C=768),
    _case("shift_mlp", "S2-MLP-wide", H=14, W=14, C=768, D=768),
    _case("token_mlp", "Mixer-S/16", S=196, C=512, D=256),
    _case("token_mlp", "Mixer-L/16", S=196, C=1024, D=512),
    _case("token_linear", "ResMLP-B24", S=196, C=768),
    _case("channel_mlp", "ResMLP-S24", S=196, C=384, D=1536),
    _case("spatial_shift", "S2-MLP-wide", H=14, W=14, C=768),
    _case("spatial_shift", "S2-MLPv2-S/7", H=32, W=32, C=192),
    _case("shift_linear", "S2-MLP-wide", H=14, W=14, C=768),
)


def select(ops=(), first_only: bool = False) -> list[Case]:
    """The cases of these ops (all if none are named), or the first of each."""
    chosen = [case for case in CASES if not ops or case.op in ops]
    if first_only:
        chosen = list({case.op: case for case in reversed(chosen)}.values())[::-1]
    return chosen
