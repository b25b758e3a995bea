"""The Triton kernels of every op within PyTorch: torch.compile, autocast, launches."""

import importlib

import options
import pytest
import torch
from guarded import Placing
from test_contract import EVERY_OPTION, call, leaves
from test_gradients import plain
from torch.utils._pytree import tree_leaves

from shiftmlp import testing
from shiftmlp.ops import FORWARD, _triton

pytest.importorskip("triton")

MODULES = [f"shiftmlp.ops.{op.name}.triton_kernels" for op in FORWARD]
CASES = {
    f"{module.split('.')[2]}-{name}": case
    for module in MODULES
    for name, case in importlib.import_module(module).COMPILE_CASES.items()
}
interpreted = pytest.mark.skipif(not _triton.INTERPRETED, reason="inputs are on the host")


def gradients(y, made, dy):
    return torch.autograd.grad(y, list(made.values()), dy)


@interpreted
@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_compiled_equals_eager(name, chosen, monkeypatch):
    """The same bits from as many launches, in the forward and in the backward."""
    torch._dynamo.reset()
    launch, launches = _triton.launch, []

    def counted(*args, **constants):
        launches.append(args)
        launch(*args, **constants)

    def eager(made):
        return call(name, chosen, made, backend="triton")

    made = leaves(chosen)
    dy = torch.randn_like(eager(made))
    monkeypatch.setattr(_triton, "launch", counted)
    results, counts = [], []
    for function in (eager, torch.compile(eager, fullgraph=True, backend="aot_eager")):
        launches.clear()
        y = function(made)
        forward = len(launches)
        results.append([y, *gradients(y, made, dy)])
        counts.append((forward, len(launches) - forward))
    testing.assert_same_bits(*results)
    assert counts[0] == counts[1] and min(counts[0]) > 0


@interpreted
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("subset", [0, -1], ids=["bare", "every option"])
@pytest.mark.parametrize("name", [op.name for op in FORWARD])
def test_autocast_gives_the_unfused_dtypes(name, subset, x_dtype):
    """Scale and residual make a result float32; in a bare one the product's dtype shows."""
    chosen = options.subsets(name)[subset]
    made = leaves(chosen)
    for key in {"x", "u", "v"} & set(made):
        made[key] = made[key].detach().to(x_dtype).requires_grad_()
    exact = {key: t.detach().double().requires_grad_() for key, t in made.items()}
    with torch.autocast("cpu", torch.bfloat16):
        ours = call(name, chosen, made, backend="triton")
        theirs = plain(name, options.arguments(chosen, made))
    truth = plain(name, options.arguments(chosen, exact))
    testing.assert_as_good_as_torch(ours, theirs, truth)
    dy = torch.randn_like(ours)
    testing.assert_as_good_as_torch(
        gradients(ours, made, dy),
        gradients(theirs, made, dy),
        gradients(truth, exact, dy.double()),
        testing.GRADIENT_SLACK,
    )


@pytest.mark.parametrize(("launcher", "inputs"), CASES.values(), ids=CASES)
def test_launchers_neither_wait_for_the_device_nor_copy_to_it(launcher, inputs, monkeypatch):
    """What a CUDA graph asks of them, shown by running them on tensors without data.

    To read a value (item, tolist, nonzero, a branch on a tensor) raises on the meta device, and so
    does a copy from it. All that the launchers make is made there by PyTorch, none on the host.
    """
    seen = []
    monkeypatch.setattr(_triton, "launch", lambda *args, **_: seen.append(args))
    for maker in (torch, "tensor"), (torch.Tensor, "new_tensor"):
        monkeypatch.setattr(*maker, None)  # they make theirs on the host, unseen by a mode
    with Placing(lambda t: seen.append(t) or t):
        seen.append(launcher(*inputs))
    tensors = [value for value in tree_leaves(seen) if isinstance(value, torch.Tensor)]
    assert len(tensors) > 2 and all(t.is_meta for t in tensors)
