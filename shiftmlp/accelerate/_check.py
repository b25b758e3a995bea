"""Is a fused block the original? Forward and backward against a float64 copy, by the one policy.

Everything runs on copies in eval mode: the model's gradients, buffers, mode and random state stay.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..testing import (
    GRADIENT_SLACK,
    MIN_REGION,
    ROUNDING_STEPS,
    SLACK,
    error_and_allowance,
)

Forward = Callable[[nn.Module, Tensor], Tensor]
INFERENCE = "output in inference"


class Agreement(NamedTuple):
    """The tensor whose error is the largest share of what is allowed."""

    error: float
    allowed: float
    worst: str

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        if self.allowed:
            return self.error / self.allowed
        return float("inf") if self.error else 0.0


def compare_forwards(block: nn.Module, original: Forward, fused: Forward, x: Tensor) -> Agreement:
    """``fused`` against ``original`` on the block's weights, for the input ``x``.

    Raises:
        ValueError: the comparison would prove nothing.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone()
        own = twin(block, lambda t: t.detach().clone())
        exact = twin(block, lambda t: t.detach().double() if t.is_floating_point() else t.clone())
        dy = random_like(x, seed=1)
        truth = results(original, exact, x.double(), dy.double())
        if _says_nothing(truth["output"], x):
            raise ValueError("its output is constant or just its input, so equality proves nothing")
        ours, torchs = (results(forward, own, x, dy) for forward in (fused, original))
        with torch.no_grad():  # where no gradient is wanted, "auto" may mean another kernel
            ours[INFERENCE] = fused(own, x)
        truth[INFERENCE], torchs[INFERENCE] = truth["output"], torchs["output"]
        return compare(ours, torchs, truth)


def results(forward: Forward, module: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """The output, and the gradient of the input and of every parameter, by name."""
    x = x.detach().requires_grad_()
    named = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
    y = forward(module, x)
    if y.shape != dy.shape:
        raise ValueError(f"its output is {tuple(y.shape)}, its input {tuple(dy.shape)}")
    grads = torch.autograd.grad(y, (x, *named.values()), dy.to(y.dtype), allow_unused=True)
    names = ("output", "gradient of the input", *(f"gradient of {name}" for name in named))
    return {n: t for n, t in zip(names, (y.detach(), *grads), strict=True) if t is not None}


def is_small(name: str, tensor: Tensor) -> bool:
    """Too few elements for the largest error among them to say much."""
    return tensor.numel() < MIN_REGION


def compare(ours: dict, torchs: dict, exact: dict, is_pooled=is_small) -> Agreement:
    """The worst tensor. One that a side lacks, or has in another dtype, is infinitely off.

    Tensors that ``is_pooled(name, tensor)`` picks are judged together, each relative to its size.
    """
    found, pool = [], []
    for name in dict.fromkeys((*exact, *ours)):
        if name not in ours or name not in exact or ours[name].dtype != torchs[name].dtype:
            found.append(Agreement(float("inf"), 0.0, name))
        elif is_pooled(name, exact[name]) and exact[name].isfinite().all():
            pool.append((name, ours[name], torchs[name], exact[name]))
        else:
            trio = (t[name] for t in (ours, torchs, exact))
            found.append(Agreement(*_error_and_allowance(name, *trio), name))
    if pool:
        found.append(_judge_together(pool))
    return max(found, key=lambda agreement: agreement.share)


def _judge_together(pool: list[tuple[str, Tensor, Tensor, Tensor]]) -> Agreement:
    sizes = [truth.abs().max().item() for *_, truth in pool]
    sides, errors = ([], [], []), []
    for (_, *trio), size in zip(pool, sizes, strict=True):
        _, torchs, truth = trio
        # A gradient that is zero but for rounding has no size of its own.
        has_none = truth.dtype == torchs.dtype or (torchs - truth).abs().max() > size / 2
        # A power of two: scaling by it rounds nothing.
        scale = 2.0 ** -math.frexp(max(sizes) if has_none else size)[1]
        for side, tensor in zip(sides, trio, strict=True):
            side.append(tensor.flatten() * scale)
        errors.append((sides[0][-1].double() - sides[2][-1]).abs().max().item())
    worst = pool[max(range(len(pool)), key=errors.__getitem__)][0]
    error, allowed = _error_and_allowance(worst, *map(torch.cat, sides))
    return Agreement(error, allowed, f"{worst}, relative to its size")


def _error_and_allowance(name: str, ours: Tensor, torchs: Tensor, exact: Tensor):
    if ours.dtype == torch.float64:
        # There is no truer number to measure both against.
        step = torch.finfo(torch.float64).eps
        error = (ours - torchs).abs().max().item()
        return error, ROUNDING_STEPS * step * torchs.abs().max().item()
    slack = SLACK if name.startswith("output") else GRADIENT_SLACK
    return error_and_allowance(ours, torchs, exact, slack)


def twin(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy in eval mode, with converted tensors, and without the hooks, which others own."""
    copy = module.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    hooks = (name for name in vars(module) if name.endswith("_hooks"))
    copy.__dict__.update((name, OrderedDict()) for name in hooks)
    copy.training = False
    copy._parameters = {
        name: None if p is None else nn.Parameter(convert(p), p.is_floating_point())
        for name, p in module._parameters.items()
    }
    copy._buffers = {n: None if b is None else convert(b) for n, b in module._buffers.items()}
    copy._modules = {
        name: None if child is None else twin(child, convert)
        for name, child in module._modules.items()
    }
    return copy


def random_like(x: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of x's kind, without touching PyTorch's random state."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _says_nothing(exact: Tensor, x: Tensor) -> bool:
    return (
        exact.numel() == 0
        or bool((exact == exact.flatten()[0]).all())
        or torch.equal(exact, x.to(exact.dtype))
    )
