"""Predicts how close each Triton op comes to its floor on an H200, from the launches of a call.

    python benchmarks/predict.py [OP ...] [--batch N] [--json FILE] [--measured BENCHFILE]

No GPU is needed: launchers run on meta tensors as in kernels.py, and every kernel is compiled for
its registers and shared memory. The prediction is optimistic: products at a library's rate, each
tensor of a launch moved once, at copy bandwidth, behind the products. "apart" is the same with
products, GELU and memory one after another.
"""

import argparse
import functools
import inspect
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.runtime import driver

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from kernels import Target  # noqa: E402
from machine_code import read_cubin  # noqa: E402

from shiftmlp import functional  # noqa: E402
from shiftmlp.bench.baselines import ours  # noqa: E402
from shiftmlp.bench.cases import SHAPES, Case, select  # noqa: E402
from shiftmlp.bench.report import _aligned, _key, load  # noqa: E402
from shiftmlp.bench.roofline import DATA_SHEET, Roofline  # noqa: E402
from shiftmlp.ops import _triton  # noqa: E402

# Measured before on an H200: dense bfloat16 products, and a copy; no bench file records it.
H200 = Roofline(790e12, 4.3e12, *DATA_SHEET["NVIDIA H200"][::3], "measured once")
MULTIPROCESSORS = 132  # NVIDIA's H100 white paper, SXM; the H200 is the same chip
CLOCK = 1.7e9  # assumed under load
ARCH = "sm_90"
# Clocks of a multiprocessor for one GELU: 19 instructions, of which 2 are MUFU (counted in the
# sm_90 machine code of ``activate``), at 128 and 16 a clock (CUDA programming guide). A slope is
# taken to cost the same.
GELU_CLOCKS = max(19 / 128, 2 / 16)
LAUNCH_US = 1.0  # assumed: to start and drain one kernel of a CUDA graph


@dataclass(frozen=True)
class Launch:
    """One launch: useful and executed operations of its products, and what else takes time."""

    kernel: str
    programs: int
    useful: int
    executed: int
    gelus: int
    nbytes: int
    resident: int  # programs that a multiprocessor holds at once

    @property
    def waves(self) -> float:
        return self.programs / (MULTIPROCESSORS * self.resident)

    def times_us(self) -> tuple[float, float]:
        """Predicted, and with nothing at the same time."""
        busiest = math.ceil(self.programs / MULTIPROCESSORS)
        if self.waves > 1:
            busiest = math.ceil(self.waves) * self.resident  # the last wave lasts a whole one
        products = self.executed / self.programs * busiest * MULTIPROCESSORS / H200.rate
        gelu = self.gelus / self.programs * busiest * GELU_CLOCKS / CLOCK
        memory = self.nbytes / H200.bandwidth
        if not self.executed:
            # Assumed of programs that only move: no multiprocessor draws more than its part.
            memory *= MULTIPROCESSORS / min(self.programs, MULTIPROCESSORS)
        # A program waits for its products, so only another one can fill the time of its GELU.
        busy = products + gelu if self.resident == 1 else max(products, gelu)
        return tuple(1e6 * t + LAUNCH_US for t in (max(busy, memory), products + gelu + memory))


def up(size: int, block: int) -> int:
    return math.ceil(size / block) * block


def _mix(programs, a):
    tiles = math.ceil(a["T"] / a["BLOCK_T"]) * math.ceil(a["C"] / a["BLOCK_C"])
    made = programs * a["BLOCK_C"] * a["BLOCK_T"]
    useful = programs // tiles * a["S"] * a["T"] * a["C"]
    return 2 * useful, 2 * made * up(a["S"], a["BLOCK_S"]), made


def _token_mlp(programs, a):
    images = programs // math.ceil(a["C"] / a["BLOCK_C"])
    made = programs * a["BLOCK_C"] * up(a["D"], a["BLOCK_D"])
    useful = images * a["C"] * a["D"] * (a["S"] + a["T"])
    return 2 * useful, 2 * made * (sum(a["S_PIECES"]) + sum(a["T_PIECES"])), made


def _token_mlp_backward(programs, a):
    images = programs // math.ceil(a["C"] / a["BLOCK_C"])
    made = programs * a["BLOCK_C"] * up(a["D"], a["BLOCK_D"])
    useful = images * a["C"] * a["D"] * (2 * a["S"] + a["T"])
    # The activation and its slope share the exponential; they are counted as two of them.
    return 2 * useful, 2 * made * (2 * sum(a["S_PIECES"]) + sum(a["T_PIECES"])), 2 * made


def _linear(programs, a):
    made = programs * a["BLOCK_M"] * a["BLOCK_N"]
    return 2 * a["M"] * a["N"] * a["K"], 2 * made * up(a["K"], a["BLOCK_K"]), made


def _whole_rows(programs, a):
    made = programs * a["BLOCK_M"] * sum(a["PIECES"])
    return 2 * a["M"] * a["N"] * a["K"], 2 * made * up(a["K"], a["BLOCK_K"]), 0


def _linear_weight(programs, a):
    padded = [up(a[side], a[f"BLOCK_{side}"]) for side in "MOK"]
    return 2 * a["M"] * a["O"] * a["K"], 2 * math.prod(padded), 0


def _token_weight(programs, a):
    read = a["B"] * up(a["C"], a["BLOCK_C"]) * up(a["S"], a["BLOCK_S"])
    useful = a["B"] * a["C"] * a["S"] * a["T"]
    return 2 * useful, 2 * read * up(a["T"], a["BLOCK_T"]), 0


def _scale(programs, a):
    return 0, 0, up(a["M"], a["BLOCK_M"]) * up(a["N"], a["BLOCK_N"])


def _move(programs, a):
    return 0, 0, programs * a["BLOCK_P"] * a["BLOCK_G"] * a["VEC"]


# (useful operations, executed ones, activations if there is one) of every kernel that ops launch.
WORK = {
    "_triton_tokens.mix_kernel": _mix,
    "_triton_tokens_backward.adjoint_kernel": _mix,
    "token_mlp.triton_kernels.token_mlp_kernel": _token_mlp,
    "token_mlp.triton_backward.token_mlp_backward_kernel": _token_mlp_backward,
    "_triton_gemm.linear_kernel": _linear,
    "_triton_gemm.weight_gradient_kernel": _linear_weight,
    "_triton_linear_norm.linear_norm_kernel": _whole_rows,
    "_triton_linear_norm.linear_norm_backward_kernel": _whole_rows,
    "_triton_tokens_backward.weight_gradient_kernel": _token_weight,
    "_triton_rows.scale_backward_kernel": _scale,
    "spatial_shift.triton_kernels.spatial_shift_kernel": _move,
} | dict.fromkeys(
    (
        "_triton_rows.norm_kernel", "_triton_math.row_statistics_kernel",
        "_triton_math.norm_backward_kernel", "_triton_math.sum_parts_kernel",
    ), lambda programs, a: (0, 0, 0),
)  # fmt: skip


def record(run, resident) -> list[Launch]:
    """What ``run`` would launch; ``resident`` tells of each launch how many programs fit."""
    launches = []

    def note(kernel, grid, *args, **constants):
        function = kernel.fn
        name = f"{function.__module__}.{function.__name__}".removeprefix("shiftmlp.ops.")
        given = dict(zip(inspect.signature(function).parameters, args, strict=False)) | constants
        useful, executed, activated = WORK[name](grid, given)
        gelus = activated if given.get("ACTIVATION") in ("gelu", "gelu_tanh") else 0
        fit = resident(kernel, grid, *args, **constants)
        launches.append(Launch(name, grid, useful, executed, gelus, moved(args), fit))

    with mock.patch.object(_triton, "launch", note):
        run()
    return launches


def moved(args) -> int:
    """Bytes of the distinct tensors among the arguments: a second read is taken to hit the L2."""
    tensors = {
        (t.untyped_storage()._cdata, t.storage_offset(), t.shape): t.numel() * t.itemsize
        for t in tree_leaves(args)
        if isinstance(t, Tensor)
    }
    return sum(tensors.values())


def compiled_fit(kernel, grid, *args, **constants) -> int:
    """How many programs of the kernel fit on a multiprocessor, by what the compiler gave them."""
    compiled = kernel.warmup(*args, grid=(grid,), **constants)
    return _fit(compiled.asm["cubin"], compiled.metadata.shared)


@functools.cache
def _fit(cubin: bytes, shared: int) -> int:
    return read_cubin(cubin, shared)[0].resident(ARCH)


def call_of(
    case: Case, batch: int, direction: str, backend="triton", device="meta", dtype=torch.bfloat16
):
    """A backend's launcher of a case on empty tensors, with the arguments of a benchmark's call."""
    captured = []
    tensors = {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, shape in case.shapes(batch).items()
    }
    with mock.patch.object(functional, "_call", lambda *called: captured.append(called)):
        ours(case.op, "triton")(**tensors)
    [(op, *inputs, _)] = captured
    if direction == "fwd":
        return lambda: op.kernels[backend][0](*inputs)
    given = dict(zip(op.names, inputs, strict=False))
    dy = torch.empty_like(next(iter(tensors.values())))
    needs = [given[name] is not None for name in op.asked]
    inputs = (dy, *(given[name] for name in op.saved), needs)
    return lambda: op.backward.kernels[backend][0](*inputs)


def predict(case: Case, batch: int, direction: str, resident=compiled_fit) -> dict:
    launches = record(call_of(case, batch, direction), resident)
    flops, nbytes = case.flops(batch, direction), case.bytes(batch, direction, 2)
    predicted, apart = map(sum, zip(*(one.times_us() for one in launches), strict=True))
    longest = max(launches, key=Launch.times_us)
    floor = H200.floor(flops, nbytes)
    return {
        "op": case.op, "case": case.name, "batch": batch, "dtype": "bfloat16",
        "direction": direction, "contender": "triton", "programs": longest.programs,
        "resident": longest.resident, "waves": longest.waves,
        "executed": sum(one.executed for one in launches) / flops if flops else None,
        "moved": sum(one.nbytes for one in launches) / nbytes,
        "predicted_us": predicted, "apart_us": apart, "floor_us": floor,
        "predicted_share": floor / predicted, "apart_share": floor / apart,
        "launches": [asdict(one) | {"predicted_us": one.times_us()[0]} for one in launches],
    }  # fmt: skip


COLUMNS = (
    "op", "case", "", "launches", "programs", "resident", "waves", "executed", "moved",
    "predicted us", "apart us", "floor us", "predicted", "apart", "measured share",
)  # fmt: skip
FORMATS = "{:.2f} {:.2f}x {:.2f}x {:.1f} {:.1f} {:.1f} {:.0%} {:.0%} {:.0%}".split()


def cells(row: dict, measured: dict) -> tuple[str, ...]:
    names = ("op", "case", "direction", "launches", "programs", "resident")
    whole = [len(row[name]) if name == "launches" else row[name] for name in names]
    names = "waves executed moved predicted_us apart_us floor_us predicted_share apart_share"
    parts = [*(row[name] for name in names.split()), measured.get(_key(row))]
    shown = ("-" if v is None else f.format(v) for f, v in zip(FORMATS, parts, strict=True))
    return (*map(str, whole), *shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", choices=[*SHAPES, []])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every launch, written there")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a bench file of an H200")
    options = parser.parse_args()
    if _triton.INTERPRETED:
        parser.error("TRITON_INTERPRET must not be set: an interpreted kernel has no registers")
    driver.set_active(Target(ARCH))
    rows = load(options.measured)["rows"] if options.measured else []
    measured = {_key(row): row["share_of_floor"] for row in rows if row["mark"] is None}
    order = [(case, way) for way in ("fwd", "bwd") for case in select(options.ops)]
    rows = [predict(case, options.batch, way) for case, way in order]
    print(f"PREDICTED for an H200, bfloat16, batch {options.batch}; waves of the longest launch")
    print("\n".join(_aligned([COLUMNS, *(cells(row, measured) for row in rows)])))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
