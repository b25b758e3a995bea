"""``python -m shiftmlp demo``: accelerate a model, prove it, and time it beside the original."""

import argparse
import copy
import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._info import info
from ..accelerate import Report, Row, explain
from ..accelerate._api import carry_out
from ..accelerate._plan import Wish
from ..accelerate._table import print_table
from ..accelerate._timing import in_turns
from ..testing import error_and_allowance
from . import _measure, _models
from ._console import Progress, add_json, positive, save_json
from ._photo import picture

BATCH = {"cpu": 2, "cuda": 64}
STEPS = {"cpu": 3, "cuda": 20}
TOP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _models.add_arguments(parser)
    parser.add_argument("--steps", type=positive, help="rounds of each timing (CPU 3, GPU 20)")
    parser.add_argument("--image", metavar="FILE", help="default: a photograph of matplotlib's")
    add_json(parser)


@dataclass
class Demo:
    """What has been found so far; an interrupted demo shows that."""

    original: nn.Module
    ours: nn.Module
    images: Tensor
    rows: list[Row] = field(default_factory=list)
    scores: dict | None = None
    timings: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        return Report(type(self.ours).__name__, True, tuple(self.rows))


def run(args: argparse.Namespace) -> int:
    """0; 1 if a block or the whole is not right, or nothing was replaced; 130 if interrupted."""
    _models.settle(args)
    torch.manual_seed(0)
    model, side = _models.load(args)
    demo, shows = _begin(args, model, side)
    print(f"{args.model}, {args.dtype}, random weights, on {_device_name(args.device)}")
    print(f"{len(demo.images)} images of {side} x {side}; the first is {shows}")
    status = 130
    try:
        _prove(demo, args.backend)
        _time(demo, args.steps or STEPS[args.device])
        status = 0 if _is_right(demo) else 1
    except KeyboardInterrupt:
        print("\ninterrupted; done so far:")
    print_table("", ["", "original", "accelerated", "verdict", "blocks' share"], table(demo))
    print("\n".join([*closing(demo), *demo.report.notes()]))
    save_json(args.json, to_dict(demo, args, status))
    return status


def _begin(args, model: nn.Module, side: int) -> tuple[Demo, str]:
    photo, shows = picture(args.image, side)
    # The first image is the photograph, the others are noisy copies.
    noise = torch.randn(args.batch or BATCH[args.device], *photo.shape) / 4
    noise[0] = 0
    images = (photo + noise).to(args.device, _models.DTYPES[args.dtype])
    return Demo(copy.deepcopy(model), model, images), shows


def _prove(demo: Demo, backend: str) -> None:
    """Every block on what reaches it, forward and backward; then the scores of the photograph."""
    total = len(explain(demo.ours).rows)
    with Progress("check", total) as progress:

        def tell(done: int, total: int, row: Row) -> None:
            demo.rows.append(row)
            error = "" if row.error is None else f", error {row.error:.1e} of {row.allowed:.1e}"
            progress.step(f"{row.name} {row.action}{error}")

        carry_out(demo.ours, Wish(backend), demo.images, tell=tell)
    photo = demo.images[:1]
    exact = copy.deepcopy(demo.original).double()
    with torch.inference_mode():
        own, ours = (model.eval()(photo) for model in (demo.original, demo.ours))
        error, allowed = error_and_allowance(ours, own, exact.eval()(photo.double()))
    best = [scores[0].topk(min(TOP, scores.shape[1])).indices.tolist() for scores in (own, ours)]
    demo.scores = {"original": best[0], "accelerated": best[1], "error": error, "allowed": allowed}


def _time(demo: Demo, steps: int) -> None:
    programs = {"inference": _measure.inference, "training step": _measure.training_step}
    names = {row.name for row in demo.rows}
    blocks = [m for name, m in demo.original.named_modules() if (name or "(model)") in names]
    with Progress("time", steps * len(programs)) as progress:
        for name, program in programs.items():
            pair = [program(model, demo.images) for model in (demo.original, demo.ours)]
            demo.timings[name] = []
            for seconds in in_turns(*pair, demo.images.device, steps):
                demo.timings[name].append(seconds)
                progress.step(f"{name}: {seconds[0] * 1e3:.1f} ms, {seconds[1] * 1e3:.1f} ms")
            demo.shares[name] = _measure.share_of(blocks, pair[0], demo.images.device)


def _is_right(demo: Demo) -> bool:
    wrong = {"VERIFY_FAILED", "BACKEND_REFUSES"}
    blocks_are = demo.report.replaced and not any(row.reason in wrong for row in demo.rows)
    return bool(blocks_are) and demo.scores["error"] <= demo.scores["allowed"]


def table(demo: Demo) -> list[list[str]]:
    return [*_block_rows(demo), *_score_rows(demo), *_time_rows(demo)]


def _block_rows(demo: Demo) -> list[list[str]]:
    if not demo.rows:
        return []
    kinds = ", ".join(dict.fromkeys(row.found.rpartition(".")[2] for row in demo.rows))
    backends = ", ".join(dict.fromkeys(row.backend for row in demo.report.replaced))
    count = len(demo.report.replaced)
    rows = [
        ["blocks", f"{len(demo.rows)} {kinds}", f"{count} replaced: {backends or 'none'}", "", ""]
    ]
    checked = [row for row in demo.rows if row.error is not None]
    if checked:
        worst = max(checked, key=lambda row: row.error / (row.allowed or 1e-300))
        rows.append(_error_row("worst tensor of a block", worst.error, worst.allowed))
    return rows


def _score_rows(demo: Demo) -> list[list[str]]:
    if demo.scores is None:
        return []
    best = [", ".join(map(str, demo.scores[side])) for side in ("original", "accelerated")]
    verdict = "same" if best[0] == best[1] else "other order or classes"
    return [
        _error_row("scores of the photograph", demo.scores["error"], demo.scores["allowed"]),
        [f"its top {TOP} classes", *best, verdict, ""],
    ]


def _time_rows(demo: Demo) -> list[list[str]]:
    rows = []
    for name, pairs in demo.timings.items():
        if pairs:
            times = [f"{seconds * 1e3:.1f} ms" for seconds in _medians(pairs)]
            verdict = f"{gain(pairs):.2f}x" if _has_kernels(demo) else "same code"
            share = f"{demo.shares[name]:.0%}" if name in demo.shares else ""
            rows.append([name, *times, verdict, share])
    return rows


def closing(demo: Demo) -> list[str]:
    """What the numbers mean, in words."""
    lines = []
    if demo.shares:
        lines.append("blocks' share: of the original's time, by hooks around its blocks, one pass")
    if not demo.rows:
        lines.append(demo.report.summary())
    elif demo.timings and not _has_kernels(demo):
        lines.append("Nothing got faster: no block runs in a kernel of ours here.")
    else:
        slow = [name for name, pairs in demo.timings.items() if pairs and gain(pairs) <= 1]
        served = {row.backend for row in demo.report.replaced}
        why = (
            "the reference is PyTorch too" if served == {"reference"} else "though kernels serve it"
        )
        lines += [f"{name} did not get faster, {why}" for name in slow]
    return lines


def to_dict(demo: Demo, args, status: int) -> dict:
    return {
        "schema": "shiftmlp.demo/1",
        "status": status,
        "model": args.model,
        "dtype": args.dtype,
        "batch": len(demo.images),
        "environment": info(),
        "report": demo.report.to_dict(),
        "scores": demo.scores,
        "seconds": demo.timings,
        "gain": {name: gain(pairs) for name, pairs in demo.timings.items() if pairs},
        "share_of_blocks": demo.shares,
    }


def _error_row(what: str, error: float, allowed: float) -> list[str]:
    verdict = "within" if error <= allowed else "NOT WITHIN"
    return [what, f"allowed {allowed:.1e}", f"error {error:.1e}", verdict, ""]


def gain(pairs: list[tuple[float, float]]) -> float:
    original, ours = _medians(pairs)
    return original / ours


def _medians(pairs: list[tuple[float, float]]) -> list[float]:
    return [statistics.median(side) for side in zip(*pairs, strict=True)]


def _has_kernels(demo: Demo) -> bool:
    return any(row.backend != "original" for row in demo.report.replaced)


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"a CPU with {torch.get_num_threads()} threads"
