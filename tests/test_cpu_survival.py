"""What the CPU kernels survive: special values, extreme sizes, threads, forks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from samples import SAMPLES, convert, randn
from test_cpu_engine import NEEDS
from test_cpu_gradients import MANY_TASKS
from test_kernels import listed
from torch import Tensor

from shiftmlp import Shift, _native, testing
from shiftmlp.ops import FORWARD, OPS

ROOT = Path(__file__).parent.parent
REPEATS, PATIENCE = 4, 50  # a busy machine may leave the work to one thread for a while
SPECIAL = (float("nan"), float("inf"), -float("inf"))

pytestmark = pytest.mark.skipif(
    _native.why_not("cpu") is not None, reason="the native library is not built"
)


def python(code: str, *args: str, **environment) -> str:
    """Runs a program beside the tests; what it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=env | environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"ended by {done.returncode}\n{done.stderr}"
    return done.stdout


def kernels(dtype):
    """``(op, dtype)`` of every op, in bfloat16 where the dtype is refused."""
    for op in OPS.values():
        takes = dtype in (op.dtypes["cpu"] or [dtype])
        yield pytest.param(op, dtype if takes else torch.bfloat16, id=op.name)


# Values that are no ordinary numbers.


def planted(args, index, value):
    """The argument with the value at one of its places, which no border touches."""
    t = args[index].clone()
    t[tuple(size // 2 for size in t.shape)] = value
    return [*args[:index], t, *args[index + 1 :]]


@pytest.mark.parametrize("value", SPECIAL, ids=str)
@pytest.mark.parametrize(("op", "dtype"), kernels(torch.float32))
def test_special_values_are_where_mathematics_has_them(op, dtype, value):
    for sample in list(SAMPLES[op.name].values())[:2]:
        args = sample(randn(dtype))
        for index, arg in enumerate(args):
            if isinstance(arg, Tensor) and arg.numel():
                given = planted(args, index, value)
                exact = op(*convert(given, Tensor.double), "reference")
                for ours, truth in zip(listed(op(*given, "cpu")), listed(exact), strict=True):
                    assert torch.equal(ours.isfinite(), truth.isfinite()), op.names[index]


ACTIVATIONS = """
import math, sys, torch
from shiftmlp import testing
from shiftmlp.ops import OPS
TRUE = {
    "gelu": lambda x: (
        x * (c := 0.5 * torch.erfc(-x * math.sqrt(0.5))),
        c + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": lambda x: (
        x * (c := torch.sigmoid(t := math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))),
        c + x * (c * torch.sigmoid(-t))
        * (math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * x * x)),
    ),
    "relu": lambda x: (torch.where(x < 0, 0, x), torch.where(x > 0, 1, 0).double()),
}
op = OPS["token_mlp"]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    info = torch.finfo(dtype)
    steps = math.log2(info.smallest_normal) - 24, math.log2(info.max)
    x = torch.logspace(*steps, 3001, 2, dtype=torch.float64).clamp(max=info.max)
    special = torch.tensor([0.0, math.inf, math.nan])
    x = torch.cat([special, x]).to(dtype)
    x = torch.cat([x, -x])
    one = torch.ones(1, 1, dtype=dtype)
    needs = [True] + [False] * (len(op.asked) - 1)
    for activation, true in TRUE.items():
        given = x[None, None], "none", None, None, 0.0, one, None, one, None, activation, None
        dy = torch.ones_like(x)[None, None]
        results = [
            (op(*given, None, backend), *op.backward(dy, *given, needs, backend))
            for backend in ("cpu", "reference")
        ]
        part = torch.bucketize(x.abs().float(), torch.tensor([info.smallest_normal, 1, 100]))
        part = torch.where((part > 1) & (x < 0), -part, part)
        for ours, torchs, truth in zip(*results, true(x.double()), strict=True):
            ours, torchs = ours.flatten(), torchs.flatten()
            torchs = torchs.where(torchs.isfinite(), truth.to(dtype))  # its squares overflow
            for kind in (torch.isnan, torch.isposinf, torch.isneginf):
                wrong = x[kind(ours) != kind(truth)]
                assert not len(wrong), (activation, kind, wrong)
            # Each part on its own, as a large value's error would hide a small one's.
            for i in part.unique():
                at = (part == i) & truth.isfinite()
                testing.assert_as_good_as_torch(ours[at], torchs[at], truth[at])
"""


@pytest.mark.parametrize("engine", ["default", "avx2", "avx512"])
def test_activations_of_every_magnitude(engine):
    features = _native.cpu_features()
    if missing := [name for name in NEEDS.get(engine, ()) if not features.get(name)]:
        pytest.skip(f"the processor has no {', '.join(missing)}")
    python(ACTIVATIONS, ATEN_CPU_CAPABILITY=engine)


# Threads and processes.


def large_arguments(name, dtype):
    """Of work for several threads, forward and backward."""
    make = randn(dtype)
    if name == "spatial_shift":
        return make(8, 32, 33, 96), Shift.S2.spec
    x, mixing = make(16, 196, 384), (make(196, 196) / 14, make(196))
    norm = "layer_norm", make(384), make(384), 1e-6
    if name == "token_linear":
        return x, *norm, *mixing, make(384), None
    if name == "token_gate":
        return make(16, 196, 384), x, *norm, *mixing
    return *convert(MANY_TASKS[name](), lambda t: t.to(dtype)), None


def calls(op, args, backend="cpu"):
    """The forward op and its backward, where it is not refused, on ones."""
    yield lambda: op(*args, backend)
    given = dict(zip(op.names, args, strict=False))
    dy = torch.ones_like(op(*args, "reference"))
    needs = [given[name] is not None for name in op.asked]
    backward = dy, *(given[name] for name in op.saved), needs
    if op.backward.refusal(backend, *backward) is None:
        yield lambda: op.backward(*backward, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_threads_and_repeats_do_not_change_a_bit(op, dtype):
    before = torch.get_num_threads()
    try:
        for call in calls(op, large_arguments(op.name, dtype)):
            torch.set_num_threads(1)
            first = listed(call())
            for threads in (2, 4):
                torch.set_num_threads(threads)
                shared = threads > os.cpu_count()
                for repeat in range(PATIENCE):
                    own, every = time.thread_time(), time.process_time()
                    result = call()
                    own, every = time.thread_time() - own, time.process_time() - every
                    shared |= every > 1.2 * own
                    testing.assert_same_bits(listed(result), first)
                    if shared and repeat >= REPEATS:
                        break
                assert shared, "one thread did all the work"
    finally:
        torch.set_num_threads(before)


PROCESSES = """
import multiprocessing
import torch
from test_cpu_survival import forward_and_backward
from torch.utils.data import DataLoader, Dataset

NAMES = "token_mlp", "shift_mlp"

class Results(Dataset):
    def __len__(self):
        return 2 * len(NAMES)
    def __getitem__(self, index):
        return forward_and_backward(NAMES[index % len(NAMES)])

def child():
    torch.set_num_threads(1)  # as PyTorch's own kernels need after a fork
    for name, wanted in zip(NAMES, here):
        assert all(map(torch.equal, forward_and_backward(name), wanted)), name

torch.set_num_threads(2)
here = [forward_and_backward(name) for name in NAMES]
loader = DataLoader(Results(), None, num_workers=2, multiprocessing_context="fork", timeout=90)
for index, results in enumerate(loader):
    assert all(map(torch.equal, results, here[index % len(NAMES)])), index
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(90)
assert process.exitcode == 0, process.exitcode or process.kill() or "the child hangs"
"""


def forward_and_backward(name):
    torch.manual_seed(0)
    args = sized(name, randn(torch.bfloat16), B=4, S=49, C=96, D=384)  # work for several threads
    return [result for call in calls(OPS[name], args) for result in listed(call())]


def test_forked_processes_and_workers_of_a_loader_give_the_same_bits():
    python(PROCESSES)


# Sizes.


def sizes():
    """Each axis alone at 1, none of them, and all odd."""
    odd = {"B": 3, "S": 37, "C": 67, "D": 41}
    yield odd
    for axis in odd:
        yield odd | {axis: 1}
    yield dict.fromkeys(odd, 1)
    yield odd | {"B": 0}


def sized(name, make, B, S, C, D):
    norm = "layer_norm", make(C), make(C), 1e-6
    channels = make(D, C) / C**0.5, make(D), make(C, D) / D**0.5, make(C)
    image, rest = (B, S, 2, C), (make(C), make(B, S, 2, C))
    return {
        "spatial_shift": lambda: (make(*image), Shift.S2.spec),
        "shift_linear": lambda: (make(*image), *channels[:2], Shift.S2.spec, "gelu", make(D), None),
        "shift_mlp": lambda: (make(*image), *norm, *channels, Shift.S2.spec, "gelu", *norm, *rest),
        "channel_mlp": lambda: (make(*image), *norm, *channels, "gelu", *norm, *rest),
        "token_linear": lambda: (make(B, S, C), *norm, make(D, S) / S**0.5, make(D), make(C), None),
        "token_mlp": lambda: (
            make(B, S, C), *norm, make(D, S) / S**0.5, make(D), make(S, D) / D**0.5, make(S),
            "gelu", make(C), make(B, S, C),
        ),
        "token_gate": lambda: (
            make(B, D, C), make(B, S, C), *norm, make(D, S) / S**0.5, make(D),
        ),
    }[name]()  # fmt: skip


def compare(op, dtype, *draws):
    every = []
    for args in draws:
        exact = convert(args, Tensor.double)
        runs = calls(op, args), calls(op, args, "reference"), calls(op, exact, "reference")
        # A backward may be refused.
        every.append([[listed(run()) for run in call] for call in zip(*runs, strict=False)])
    for results in zip(*every, strict=True):
        if dtype == torch.float32:
            for ours, torchs, _ in results:
                testing.assert_close_to_rounding(ours, torchs)
        else:
            testing.assert_as_good_on_average(results)


@pytest.mark.parametrize("size", sizes(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_sizes(op, dtype, size):
    draws = 1 if dtype == torch.float32 else 8  # as some results are a single number
    compare(op, dtype, *(sized(op.name, randn(dtype), **size) for _ in range(draws)))


LONG = [(1024, 40), (40, 1024), (4096, 5), (5, 4096)]
TOKEN_OPS = [op for op in FORWARD if op.name.startswith("token")]


@pytest.mark.parametrize(("S", "D"), LONG)
@pytest.mark.parametrize("op", TOKEN_OPS, ids=lambda op: op.name)
def test_many_tokens(op, S, D):
    compare(op, torch.float32, sized(op.name, randn(torch.float32), B=1, S=S, C=20, D=D))
