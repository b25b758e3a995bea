"""The backend "emulated": every "cuda" kernel, its adapter included, on tensors in CPU memory. It
plays a device of capability 8.0, and "emulated_sm90" one of 9.0 for the ops that choose by it.
"emulated_tf32" is the first one again, given float32 where `tf32.allowed`.

They refuse what "cuda" refuses, but for the device, and each of their calls has the threads run in
another order. Tests that walk the backends walk it too, where the emulator can be built. A call
takes 10 to 100 ms, so that what those tests may cost is decided here, by DRAWS and `some`.
"""

import functools
from types import ModuleType
from unittest import mock

import emulator
import torch

from shiftmlp import _native
from shiftmlp.ops import OPS
from shiftmlp.ops import _native as native
from shiftmlp.ops._op import Op

CAPABILITIES = {"emulated": 80, "emulated_sm90": 90, "emulated_tf32": 80}
WITH_TF32 = [] if emulator.missing() else list(CAPABILITIES)
BACKENDS = WITH_TF32[:2]
DRAWS = 4  # of a case whose result is a few numbers


def some(subsets: list) -> list:
    """All of them if they are few; or a fifth, in which nearly any two choices still meet."""
    return subsets if len(subsets) <= 24 else subsets[::5]


@functools.cache
def library() -> ModuleType:
    """Serves the ops of ``torch.ops.shiftmlp_cuda`` on the CPU once it is loaded."""
    path = emulator.build_ops(schemas=_native.why_not("cuda") is not None)
    torch.ops.load_library(path)
    return emulator.load(path)


def not_on_cpu(backend: str, name: str, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"{name} must be on cpu, got {device}"


def attach(op: Op, backend: str) -> None:
    launch, refuses, _ = op.kernels["cuda"]

    def emulate(*inputs):
        seed = torch.randint(2**31, ()).item()
        library().set_seed(seed)
        library().set_capability(CAPABILITIES[backend])
        try:
            return launch(*inputs)
        except RuntimeError as error:
            raise RuntimeError(f"seed {seed}: {error}") from error

    def refused(*inputs) -> str | None:
        with mock.patch.object(native, "not_there", not_on_cpu):
            return refuses(*inputs)

    op.kernel(backend, refused)(emulate)
    if taken := op.dtypes["cuda"]:  # what tests give it
        is_tf32 = backend == "emulated_tf32"
        op.dtypes[backend] = tuple(t for t in taken if (t == torch.float32) == is_tf32)


for _op in OPS.values():
    for _backend in WITH_TF32:
        # That of spatial_shift is the same everywhere.
        if "cuda" in _op.kernels and (_backend == "emulated" or "spatial" not in _op.name):
            attach(_op, _backend)
