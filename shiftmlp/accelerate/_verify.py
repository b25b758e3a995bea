"""Two whole models compared, by the policy that kernels are tested with."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._settings import disabled
from ._activations import as_call
from ._check import Agreement, compare, random_like


@dataclass(frozen=True)
class Verification:
    """The worst of the compared tensors; true if its error is allowed."""

    agreement: Agreement
    tensors: int

    def __bool__(self) -> bool:
        return self.agreement.holds

    def to_dict(self) -> dict:
        return {"holds": bool(self), "tensors": self.tensors, **self.agreement._asdict()}

    def __str__(self) -> str:
        error, allowed, worst = self.agreement
        verdict = "agree" if self else "DIFFER"
        return (
            f"{self.tensors} tensors {verdict}; the worst, {worst}, is off by {error:.1e}, "
            f"allowed is {allowed:.1e}"
        )


def verify(a: nn.Module, b: nn.Module, example_input, *, backward: bool = True) -> Verification:
    """Does model ``b`` compute what model ``a`` computes?

    Both run on copies in eval mode, ``a`` also in float64 with its own PyTorch code as the truth:
    b's error may be at most twice a's, plus one rounding step (``shiftmlp.testing``). Compared are
    the output and, with ``backward``, the gradient of every input and of all parameters together,
    each relative to its largest element.

    Args:
        a, b: modules with the same parameter names; each returns one tensor.
        example_input: a Tensor, a tuple of arguments or a dict of keyword arguments.

    Returns:
        A Verification: true if they agree; prints as one line.

    Raises:
        TypeError: a model is no ``nn.Module``, or returns no tensor.
        ValueError: a's output is constant, which proves nothing.
    """
    for name, model in (("a", a), ("b", b)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name} must be an nn.Module, got {type(model).__name__}")
    call = as_call(example_input)
    with disabled():
        truth = _results(copy.deepcopy(a).double(), _double(call), backward)
    if truth["output"].numel() == 0 or (truth["output"] == truth["output"].flatten()[0]).all():
        raise ValueError("a's output is constant, so equality would prove nothing")
    ours, torchs = (_results(copy.deepcopy(model), call, backward) for model in (b, a))
    return Verification(compare(ours, torchs, truth, _is_of_parameter), len(truth))


def _is_of_parameter(name: str, tensor: Tensor) -> bool:
    # Through a whole model rounding reaches a gradient as a common shift: alone, a tensor's largest
    # error is one throw of the dice, on both sides.
    return name.startswith("gradient of parameter")


def _results(model: nn.Module, call, backward: bool) -> dict[str, Tensor]:
    args, kwargs = call
    inputs = {str(i): x for i, x in enumerate(args)} | kwargs
    with torch.inference_mode(False), torch.set_grad_enabled(backward):
        given = {name: _leaf(x) if backward else x for name, x in inputs.items()}
        named = {f"gradient of {n}": x for n, x in given.items() if _is_float(x)}
        named |= {
            f"gradient of parameter {n}": p.requires_grad_() for n, p in model.named_parameters()
        }
        positional = [given.pop(str(i)) for i in range(len(args))]
        y = model.eval()(*positional, **given)
        if not isinstance(y, Tensor):
            raise TypeError(f"a model must return one Tensor, got {type(y).__name__}")
        if not backward:
            return {"output": y}
        # The same direction for both models, rounded as the output is.
        dy = random_like(y.detach().float(), seed=1).bfloat16().to(y.dtype)
        grads = torch.autograd.grad(y, tuple(named.values()), dy, allow_unused=True)
    found = {name: g for name, g in zip(named, grads, strict=True) if g is not None}
    return {"output": y.detach()} | found


def _leaf(x):
    return x.detach().clone().requires_grad_() if _is_float(x) else x


def _is_float(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _double(call):
    args, kwargs = call

    def convert(x):
        return x.double() if _is_float(x) else x

    return tuple(map(convert, args)), {name: convert(x) for name, x in kwargs.items()}
