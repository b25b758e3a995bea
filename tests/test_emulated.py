"""The CUDA backend as users reach it, in the emulator: every option, every gradient alone."""

import emulated
import options
import pytest
import torch
from samples import randn
from test_kernels import exact_dtype

from shiftmlp import _settings, testing
from shiftmlp import functional as SF
from shiftmlp.ops import FORWARD, OPS

SUBSETS = [
    pytest.param(op.name, chosen, id=f"{op.name}-{options.label(chosen)}")
    for op in FORWARD
    if "emulated" in op.kernels
    for chosen in emulated.some(options.subsets(op.name))
]


@pytest.fixture(autouse=True)
def emulated_is_a_backend(monkeypatch):
    monkeypatch.setattr(_settings, "BACKENDS", (*_settings.BACKENDS, "emulated"))


def leaves(name, chosen) -> dict:
    make = randn(exact_dtype(OPS[name], "emulated"))
    return options.tensors(chosen, lambda *shape: make(*shape).requires_grad_())


def call(name, chosen, made, backend="emulated") -> torch.Tensor:
    return getattr(SF, name)(**options.arguments(chosen, made), backend=backend)


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_every_option_is_as_good_as_torch(name, chosen):
    draws = []
    for _ in range(emulated.DRAWS):
        made = leaves(name, chosen)
        exact = {key: t.detach().double().requires_grad_() for key, t in made.items()}
        cases = (made, "emulated"), (made, "reference"), (exact, "reference")
        results = [call(name, chosen, *case) for case in cases]
        dy = torch.randn_like(results[0])
        draws.append([
            [y.detach(), *torch.autograd.grad(y, given.values(), dy.to(y.dtype))]
            for y, (given, _) in zip(results, cases, strict=True)
        ])  # fmt: skip
    testing.assert_as_good_on_average(draws)


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_only_what_is_asked_for_is_computed(name, chosen):
    """Each gradient alone has the bits of the one among all."""
    made = leaves(name, chosen)
    y = call(name, chosen, made)
    dy = torch.randn_like(y)
    every = torch.autograd.grad(y, made.values(), dy)
    for key, wanted in zip(made, every, strict=True):
        alone = {other: t.detach().requires_grad_(other == key) for other, t in made.items()}
        call(name, chosen, alone).backward(dy)
        assert [other for other, t in alone.items() if t.grad is not None] == [key]
        testing.assert_same_bits(alone[key].grad, wanted)
