"""Whole models as cases: what is left of a block's gain where the rest of the network runs too."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..accelerate import accelerate
from ..models import create_model

SIDE = 224


@dataclass(frozen=True)
class ModelCase:
    """A model of ``list_models()`` at inference, plain PyTorch beside the same one accelerated."""

    name: str
    sizes: tuple[tuple[str, int], ...] = ()  # for a smaller model
    op: str = "model"

    def eager(self, dtype: torch.dtype) -> nn.Module:
        return _plain(self.name, self.sizes, dtype)

    def ours(self, backend: str, dtype: torch.dtype) -> Callable:
        return accelerate(copy.deepcopy(self.eager(dtype)), backend=backend, verify=False)

    def inputs(self, batch: int, dtype, device, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        images = torch.randn(self._images(batch), generator=generator, device=device)
        return {"image": images.to(dtype)}

    def flops(self, batch: int, direction: str) -> int:
        return batch * _flops(self)

    def bytes(self, batch: int, direction: str, itemsize: int) -> int:
        """Images and weights once; activations may stay in a cache."""
        weights = sum(weight.numel() for weight in self.eager(torch.float32).parameters())
        return (weights + math.prod(self._images(batch))) * itemsize

    def _images(self, batch: int) -> tuple[int, ...]:
        side = dict(self.sizes).get("img_size", SIDE)
        return batch, 3, side, side


@functools.cache
def _flops(case: ModelCase) -> int:
    """Of one image."""
    model = copy.deepcopy(case.eager(torch.float32)).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(case._images(1), device="meta"))
    return counter.get_total_flops()


@functools.lru_cache(maxsize=2)
def _plain(name: str, sizes: tuple, dtype: torch.dtype) -> nn.Module:
    """With one seed for all: the weights of two dtypes differ by rounding alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **dict(sizes))
        # A head of zeros, as these models begin with, would make every result equal.
        nn.init.trunc_normal_(model.head.weight, std=0.02)
    return model.to(dtype).eval()
