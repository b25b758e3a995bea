"""One case: check every contender on the very inputs that are timed, then let them take turns."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from .accuracy import judge
from .baselines import BACKENDS, BASELINES, Contender, contenders
from .cases import Job
from .environment import remark
from .memory import kept_bytes
from .report import BenchFile
from .roofline import Roofline, roofline
from .timers import Timing, clock, input_sets, interleave, sampler


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    against: tuple[str, ...] = BASELINES
    backends: tuple[str, ...] = BACKENDS
    seconds: float = 2.0  # of sampling for each case, all contenders together


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
    """A row for each contender, why each other one is left out, and whether one of ours failed.

    A baseline that cannot take part has a row as well, marked, without figures.
    """
    torch._dynamo.reset()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    case, device = job.case, settings.device
    work = Work(
        case.flops(job.batch, job.direction),
        nbytes := case.bytes(job.batch, job.direction, job.dtype.itemsize),
        roofline(device, job.dtype, nbytes),
    )
    sets = input_sets(nbytes, device)
    inputs = [case.inputs(job.batch, job.dtype, device, seed) for seed in range(sets)]
    field = contenders(job, settings.against, settings.backends, device)
    # The timed backward is repeated on one graph, which donated buffers would not survive.
    with functorch_config.patch(donated_buffer=job.direction != "bwd"):
        verdicts, reasons = check(field, inputs[0], job)
        able = [one for one in field if one.name in verdicts]
        samplers = {one.name: sampler(_maker(one, inputs, job.direction), device) for one in able}
        timings = interleave(samplers, settings.seconds)
        kept = {one.name: _kept(one, inputs[0], job.direction) for one in able}
    rows, left_out = [], []
    for one in field:
        row = _blank(job, one, device)
        if one.name in verdicts:
            row |= _figures(one, timings[one.name], verdicts[one.name], work)
            row["kept_bytes"] = kept[one.name]
        elif one.is_ours:
            left_out.append(f"{job}: {one.name} {': '.join(reasons[one.name])}")
            continue
        else:
            row["mark"], row["reason"] = reasons[one.name]
        rows.append(row)
    _add_ratios(rows, settings.against)
    return rows, left_out, any(one.is_ours and _failed(reasons, one.name) for one in field)


def _failed(reasons: dict, name: str) -> bool:
    return name in reasons and reasons[name][0] == "fails"


def _kept(contender: Contender, inputs: dict, direction: str) -> int | None:
    if direction == "fwd":
        return None
    call, given = bind(contender, inputs)
    return kept_bytes(call, given.values())


def _maker(contender: Contender, inputs: list[dict], direction: str):
    return lambda: [prepare(contender, tensors, direction) for tensors in inputs]


def prepare(contender: Contender, inputs: dict[str, Tensor], direction: str) -> Callable:
    """A call without arguments that returns its results: y, or y and gradients, or gradients.

    The tensors are leaves that want a gradient, as parameters do, in every direction.
    """
    call, given = bind(contender, inputs)
    leaves = list(given.values())
    name, first = next(iter(inputs.items()))
    dy = contender.fit(name, _gradient_like(first))

    def forward():
        with torch.no_grad():
            return [call()]

    def forward_backward():
        y = call()
        return [y, *torch.autograd.grad(y, leaves, dy)]

    if direction == "bwd":
        y = call()
        return lambda: list(torch.autograd.grad(y, leaves, dy, retain_graph=True))
    return {"fwd": forward, "fwd_bwd": forward_backward}[direction]


def bind(contender: Contender, inputs: dict[str, Tensor]) -> tuple[Callable, dict[str, Tensor]]:
    """The contender's call, and the tensors that it is made of, by name."""
    given = {
        name: contender.fit(name, tensor).detach().requires_grad_()
        for name, tensor in inputs.items()
    }
    return contender.bind(contender.function, **given), given


def _gradient_like(y: Tensor) -> Tensor:
    generator = torch.Generator(y.device).manual_seed(1)
    return torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype)


def results(contender: Contender, inputs: dict[str, Tensor], direction: str) -> dict[str, Tensor]:
    """What one call returns, by name, without the padding."""
    found = prepare(contender, inputs, direction)()
    first = next(iter(inputs.values()))
    wanted = {"y": first} if direction != "bwd" else {}
    wanted |= inputs if direction != "fwd" else {}
    found = dict(zip(wanted, (tensor.detach() for tensor in found), strict=True))
    if contender.multiple == 1:
        return found
    return {name: found[name][tuple(map(slice, like.shape))] for name, like in wanted.items()}


def check(field: list[Contender], inputs: dict, job: Job) -> tuple[dict, dict]:
    """By name: what ``judge`` says of each contender that can run, the mark and reason of others.

    The truth is unfused PyTorch in float64, so that our own reference is a contender like others.
    """
    eager = Contender("eager", job.case.eager(job.dtype))
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    exact = results(Contender("exact", _in_double(eager.function)), doubles, job.direction)
    theirs = results(eager, inputs, job.direction)
    verdicts, reasons = {}, {}
    for one in field:
        try:
            found = results(one, inputs, job.direction)
        except Exception as error:  # a compiler may raise anything; the others still count
            words = " ".join(str(error).split()) or type(error).__name__
            reasons[one.name] = _mark_of(error), words[:300]
        else:
            verdicts[one.name] = judge(found, theirs, exact)
    return verdicts, reasons


def _mark_of(error: Exception) -> str:
    marks = {NotImplementedError: "refuses", ModuleNotFoundError: "absent"}
    return next((mark for kind, mark in marks.items() if isinstance(error, kind)), "fails")


def _in_double(function: Callable) -> Callable:
    """A model keeps its weights, which are rounded already; a function takes them as they come."""
    return copy.deepcopy(function).double() if isinstance(function, nn.Module) else function


FIGURES = (
    "time_us", "spread_us", "samples", "tflops", "gbs", "peak_tflops", "share_of_peak", "floor_us",
    "share_of_floor", "error_ratio", "kept_bytes", "best",
)  # fmt: skip


class Work(NamedTuple):
    """What a case asks of the machine, and what the machine has."""

    flops: int
    nbytes: int
    bound: Roofline


def _blank(job: Job, contender: Contender, device: str) -> dict:
    """A row before its figures are known."""
    return {
        "op": job.case.op,
        "case": job.case.name,
        "batch": job.batch,
        "dtype": job.dtype_name,
        "direction": job.direction,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "contender": contender.name,
        "clock": clock(device),
        "remark": remark(device, job.dtype),
        **dict.fromkeys(FIGURES),
        "ratios": {},
        "mark": None,
        "reason": None,
        "ours": contender.is_ours,
    }


def _figures(contender: Contender, timing: Timing, verdict, work: Work) -> dict:
    flops, nbytes, bound = work
    error, right = verdict
    mark = "impossible" if bound.impossible(timing.median, flops, nbytes) else None
    if contender.is_ours and not right:
        mark = "wrong"
    seconds = max(timing.median, 1e-9) / 1e6
    floor = bound.floor(flops, nbytes)
    return {
        "time_us": timing.median,
        "spread_us": [timing.low, timing.high],
        "samples": timing.samples,
        "tflops": flops / seconds / 1e12,
        "gbs": nbytes / seconds / 1e9,
        "peak_tflops": bound.rate / 1e12,
        "share_of_peak": flops / seconds / bound.rate,
        "floor_us": floor,
        "share_of_floor": floor / (seconds * 1e6),
        "error_ratio": error if error < float("inf") else None,
        "mark": mark,
    }


def _add_ratios(rows: list[dict], against) -> None:
    """How many times as fast as each baseline a row is; nothing for a row that does not count.

    ``best`` is the fastest baseline, which our rows are held to.
    """
    counted = [row for row in rows if row["mark"] is None]
    baselines = [row for row in counted if row["contender"] in ("eager", *against)]
    best = min(baselines, key=lambda row: row["time_us"], default=None)
    for row in counted:
        row["ratios"] = {
            baseline["contender"]: baseline["time_us"] / row["time_us"]
            for baseline in baselines
            if baseline is not row
        }
        if row["ours"] and best:
            row["best"] = best["contender"]
