"""What a call costs above its kernel: checks, dispatcher and choice, in microseconds.

The least of many short rounds is taken, as whatever else the machine does only ever adds. Measured
twice: with a kernel that returns at once, which is what the path itself takes; and as the
difference between a call and the real kernel, which pushes the path out of the CPU's caches.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import functional
from ..ops import OPS
from .baselines import arguments
from .cases import SHAPES, Case

LIMIT_US = 15.0
TINY = {"S": 4, "C": 8, "D": 4, "H": 2, "W": 2}
CALLS, ROUNDS = 5, 2000


def tiny_call(op: str) -> Callable:
    """The public function on inputs so small that nothing but the path counts."""
    letters = set("".join(SHAPES[op].values())) - {"B"}
    case = Case(op, "tiny", tuple((letter, TINY[letter]) for letter in sorted(letters)))
    inputs = case.inputs(1, torch.float32, "cpu")
    return functools.partial(getattr(functional, op), **arguments(op, **inputs))


def path_us(op: str) -> float:
    """Microseconds of a forward call whose kernel returns at once."""
    call = tiny_call(op)
    with torch.no_grad(), _instant_kernels(op, call()):
        return _least(call)[0]


def above_kernel_us(op: str) -> float:
    """Microseconds of a forward call less those of its kernel, the two taking turns."""
    call = tiny_call(op)
    with torch.no_grad():
        with _Recorder(OPS[op].overload) as recorder:
            call()
        *inputs, backend = recorder.arguments
        kernel = functools.partial(OPS[op].choose(backend, *inputs), *inputs)
        whole, part = _least(call, kernel)
    return whole - part


def _least(*runs: Callable) -> list[float]:
    least = [float("inf")] * len(runs)
    for _ in range(ROUNDS):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            for _ in range(CALLS):
                run()
            least[index] = min(least[index], time.perf_counter() - start)
    return [seconds / CALLS * 1e6 for seconds in least]


@contextlib.contextmanager
def _instant_kernels(op: str, result: torch.Tensor) -> Iterator[None]:
    """The op's table with every kernel's work taken out; refusals are still asked."""
    table, composed = OPS[op].kernels, OPS[op].composed
    before = dict(table)
    for backend, (_, *conditions) in before.items():
        table[backend] = (lambda *inputs: result, *conditions)
    OPS[op].composed = None
    try:
        yield
    finally:
        OPS[op].composed = composed
        table.update(before)


class _Recorder(TorchDispatchMode):
    """Keeps the arguments with which ``overload`` is reached."""

    def __init__(self, overload):
        super().__init__()
        self.overload, self.arguments = overload, None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is self.overload:
            self.arguments = args
        return function(*args, **(kwargs or {}))
