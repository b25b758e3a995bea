"""Is a fused block the original? Forward and backward against a float64 copy, by the one policy.

Everything runs on copies in eval mode: the model's gradients, buffers, mode and random state stay.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..testing import GRADIENT_SLACK, ROUNDING_STEPS, SLACK, error_and_allowance

Forward = Callable[[nn.Module, Tensor], Tensor]


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
        return compare(results(fused, own, x, dy), results(original, own, x, dy), truth)


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


def compare(ours: dict, torchs: dict, exact: dict) -> Agreement:
    """The worst tensor. One that a side lacks, or has in another dtype, is infinitely off."""
    found = []
    for name in dict.fromkeys((*exact, *ours)):
        if name in ours and name in exact and ours[name].dtype == torchs[name].dtype:
            error, allowed = _error_and_allowance(name, ours[name], torchs[name], exact[name])
        else:
            error, allowed = float("inf"), 0.0
        found.append(Agreement(error, allowed, name))
    return max(found, key=lambda agreement: agreement.share)


def _error_and_allowance(name: str, ours: Tensor, torchs: Tensor, exact: Tensor):
    if ours.dtype == torch.float64:
        # There is no truer number to measure both against.
        step = torch.finfo(torch.float64).eps
        error = (ours - torchs).abs().max().item()
        return error, ROUNDING_STEPS * step * torchs.abs().max().item()
    slack = SLACK if name == "output" else GRADIENT_SLACK
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
