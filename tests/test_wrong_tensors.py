"""Wrong tensors, given to the compiled ops themselves: refused in words, never followed."""

import re

import emulated
import pytest
import torch
from samples import SAMPLES, randn
from test_kernels import exact_dtype
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shiftmlp import _native, testing
from shiftmlp.ops import OPS

BACKENDS = emulated.BACKENDS + ["cpu"] * (_native.why_not("cpu") is None)
CASES = [
    pytest.param(op, backend, id=f"{op.name}-{backend}")
    for op in OPS.values()
    for backend in BACKENDS
    if backend in op.kernels and "spatial" not in op.name
]


class Recorded(TorchDispatchMode):
    """Keeps the call of a compiled op."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("shiftmlp_cpu", "shiftmlp_cuda"):
            self.func, self.args = func, args
        return func(*args, **kwargs or {})


def longer(axis):
    return lambda t: torch.cat([t, t.narrow(axis, 0, 1)], axis) if t.dim() > axis else None


def with_gaps(t):
    """Values with others between them; a kernel that writes to a copy of them has done nothing."""
    return t.repeat_interleave(2, -1)[..., ::2] if t.numel() > 1 else None


WRONG = {
    "integers": lambda t: t.long(),
    "float64": lambda t: t.double(),
    "a longer first axis": longer(0),
    "a longer second axis": longer(1),
    "a longer third axis": longer(2),
    "one axis more": lambda t: t[None].clone(),
    "no axis": lambda t: t.flatten()[0].clone(),
    "no elements": lambda t: t[:0],
    "gaps": with_gaps,
    "another device": lambda t: t.to("meta"),
    "another layout": lambda t: t.to_sparse(),
}


def with_another(args, index, place, tensor):
    args = list(args)
    if place is not None:
        tensor = [*args[index][:place], tensor, *args[index][place + 1 :]]
    args[index] = tensor
    return args


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize(("op", "backend"), CASES)
def test_wrong_tensors_are_refused_by_the_compiled_ops(op, backend, how):
    """Or do no harm, as one that holds the values of the right one in another layout."""
    args = next(iter(SAMPLES[op.name].values()))(randn(exact_dtype(op, backend)))
    with Recorded() as call:
        op(*args, backend)
    names = [argument.name for argument in call.func._schema.arguments]
    words = "|".join([*names, "weights?", "bias", "norm", "gradient", "Meta", "SparseCPU", "y"])
    refused = 0
    for index, (name, given) in enumerate(zip(names, call.args, strict=True)):
        for place in range(len(given)) if isinstance(given, list) else [None]:
            right = given if place is None else given[place]
            if not isinstance(right, Tensor) or (wrong := WRONG[how](right)) is None:
                continue
            is_result = name in ("y", "gradients")
            if is_result and wrong.layout == torch.strided and wrong.is_floating_point():
                wrong.fill_(float("nan"))
            try:
                call.func(*with_another(call.args, index, place, wrong))
            except (RuntimeError, ValueError) as error:
                assert re.search(rf"\b({words})\b", str(error)), error
                refused += 1
            else:
                assert how in ("one axis more", "gaps"), f"{name} {place} was accepted"
                if is_result:
                    testing.assert_same_bits(wrong.reshape(right.shape), right)
    assert refused
