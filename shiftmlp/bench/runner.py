"""One case: check every contender on the very inputs that are timed, then let them take turns."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from .accuracy import judge
from .baselines import BACKENDS, BASELINES, EAGER, Contender, contenders
from .cases import Case
from .report import BenchFile
from .roofline import roofline
from .timers import Timing, input_sets, interleave, sampler


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    against: tuple[str, ...] = BASELINES
    backends: tuple[str, ...] = BACKENDS
    seconds: float = 2.0  # of sampling for each case, all contenders together


@dataclass(frozen=True)
class Job:
    """A case with everything that makes it a measurement of its own."""

    case: Case
    batch: int
    dtype: torch.dtype
    direction: str

    def __str__(self):
        return f"{self.case.op} {self.case.name} b{self.batch} {self.dtype_name} {self.direction}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def run_all(
    jobs: list[Job],
    settings: Settings,
    file: BenchFile,
    budget: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[dict]]:
    """Measure in order, keep every finished case in ``file``, and stop before ``budget`` seconds.

    A job starts if the longest one so far would still end in time.
    """
    start = clock()
    longest = 0.0
    for index, job in enumerate(jobs):
        before = clock()
        if before - start + longest > budget:
            reason = f"no time left within {budget:g} s"
            file.add([], [f"{later}: {reason}" for later in jobs[index:]])
            return
        rows, left_out, failed = measure(job, settings)
        file.add(rows, left_out, failed)
        longest = max(longest, clock() - before)
        yield rows


def measure(job: Job, settings: Settings) -> tuple[list[dict], list[str], bool]:
    """A row for each contender, why each other one is left out, and whether one of ours failed."""
    torch._dynamo.reset()
    case, device = job.case, settings.device
    flops = case.flops(job.batch, job.direction)
    nbytes = case.bytes(job.batch, job.direction, job.dtype.itemsize)
    bound = roofline(device, job.dtype, nbytes)
    sets = input_sets(nbytes, device)
    inputs = [case.inputs(job.batch, job.dtype, device, seed) for seed in range(sets)]
    field = contenders(case.op, settings.against, settings.backends, device)
    # The timed backward is repeated on one graph, which donated buffers would not survive.
    with functorch_config.patch(donated_buffer=job.direction != "bwd"):
        verdicts, refused, failed = check(field, inputs[0], job)
        able = [one for one in field if one.name in verdicts]
        samplers = {one.name: sampler(_maker(one, inputs, job.direction), device) for one in able}
        timings = interleave(samplers, settings.seconds)
    rows = [
        _row(job, one, timings[one.name], verdicts[one.name], flops, nbytes, bound) for one in able
    ]
    _add_ratios(rows, settings.against)
    left_out = [
        f"{job}: {name} {verb}: {reason}"
        for verb, reasons in (("refuses", refused), ("fails", failed))
        for name, reason in reasons.items()
    ]
    return rows, left_out, any(one.is_ours and one.name in failed for one in field)


def _maker(contender: Contender, inputs: list[dict], direction: str):
    return lambda: [prepare(contender, tensors, direction) for tensors in inputs]


def prepare(contender: Contender, inputs: dict[str, Tensor], direction: str) -> Callable:
    """A call without arguments that returns its results: y, or y and gradients, or gradients.

    The tensors are leaves that want a gradient, as parameters do, in every direction.
    """
    function = contender.function
    given = {
        name: contender.fit(name, tensor).detach().requires_grad_()
        for name, tensor in inputs.items()
    }
    leaves = list(given.values())
    name, first = next(iter(inputs.items()))
    dy = contender.fit(name, _gradient_like(first))

    def forward():
        with torch.no_grad():
            return [function(**given)]

    def forward_backward():
        y = function(**given)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    if direction == "bwd":
        y = function(**given)
        return lambda: list(torch.autograd.grad(y, leaves, dy, retain_graph=True))
    return {"fwd": forward, "fwd_bwd": forward_backward}[direction]


def _gradient_like(y: Tensor) -> Tensor:
    generator = torch.Generator(y.device).manual_seed(1)
    return torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype)


def results(contender: Contender, inputs: dict[str, Tensor], direction: str) -> dict[str, Tensor]:
    """What one call returns, by name, without the padding."""
    found = prepare(contender, inputs, direction)()
    first = next(iter(inputs.values()))
    wanted = {"y": first} if direction != "bwd" else {}
    wanted |= inputs if direction != "fwd" else {}
    return {
        name: tensor.detach()[tuple(map(slice, like.shape))]
        for (name, like), tensor in zip(wanted.items(), found, strict=True)
    }


def check(field: list[Contender], inputs: dict, job: Job) -> tuple[dict, dict, dict]:
    """By name: what ``judge`` says of each contender that can run, why others refuse, or fail.

    The truth is unfused PyTorch in float64, so that our own reference is a contender like others.
    """
    eager = Contender("eager", EAGER[job.case.op])
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    exact = results(eager, doubles, job.direction)
    theirs = results(eager, inputs, job.direction)
    verdicts, refused, failed = {}, {}, {}
    for one in field:
        try:
            found = results(one, inputs, job.direction)
        except Exception as error:  # a compiler may raise anything; the others still count
            reasons = refused if isinstance(error, NotImplementedError) else failed
            reasons[one.name] = (" ".join(str(error).split()) or type(error).__name__)[:300]
        else:
            verdicts[one.name] = judge(found, theirs, exact)
    return verdicts, refused, failed


def _row(job, contender: Contender, timing: Timing, verdict, flops, nbytes, bound) -> dict:
    time_us = timing.median
    error, right = verdict
    mark = None
    if bound.impossible(time_us, flops, nbytes):
        mark = "impossible"
    if contender.is_ours and not right:
        mark = "wrong"
    seconds = max(time_us, 1e-9) / 1e6
    return {
        "op": job.case.op,
        "case": job.case.name,
        "batch": job.batch,
        "dtype": job.dtype_name,
        "direction": job.direction,
        "contender": contender.name,
        "time_us": time_us,
        "spread_us": [timing.low, timing.high],
        "samples": timing.samples,
        "tflops": flops / seconds / 1e12,
        "gbs": nbytes / seconds / 1e9,
        "floor_us": bound.floor(flops, nbytes),
        "share_of_floor": bound.floor(flops, nbytes) / (seconds * 1e6),
        "error_ratio": error if error < float("inf") else None,
        "ratios": {},
        "mark": mark,
        "ours": contender.is_ours,
    }


def _add_ratios(rows: list[dict], against) -> None:
    """How many times as fast as each baseline a row is; nothing for a row that does not count."""
    baselines = {row["contender"]: row for row in rows if row["contender"] in ("eager", *against)}
    for row in rows:
        row["ratios"] = {
            name: baseline["time_us"] / row["time_us"]
            for name, baseline in baselines.items()
            if row["mark"] is None and baseline["mark"] is None and baseline is not row
        }
