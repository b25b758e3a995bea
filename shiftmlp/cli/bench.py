"""``python -m shiftmlp bench``: every kernel against unfused and compiled PyTorch, side by side."""

import argparse
from pathlib import Path

import torch

from ..bench.baselines import BACKENDS, BASELINES
from ..bench.cases import DIRECTIONS, SHAPES, Job, select
from ..bench.environment import default_path, describe
from ..bench.models import ModelCase
from ..bench.report import KEY, BenchFile, case_table, header
from ..bench.runner import Settings, run_all
from ..models import list_models
from ._console import UserError, positive

DTYPES = {
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16,
    "float16": torch.float16, "fp32": torch.float32, "float32": torch.float32,
    "fp64": torch.float64, "float64": torch.float64,
}  # fmt: skip
SECONDS = {False: 2.0, True: 0.2}
INTERRUPTED = 130


def _several(known):
    """An argparse type: names with commas between."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, got {name!r}")
        return names

    return parse


def _sizes(text: str) -> list[int]:
    return [positive(size) for size in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = f"of {', '.join(SHAPES)}; all if none is named"
    add("ops", nargs="*", type=_several(SHAPES), metavar="OP", help=names)
    text = f"whole models at inference in place of ops, of {', '.join(list_models())}"
    add("--models", type=_several(list_models()), metavar="MODEL", help=text)
    add("--dtype", type=_several(DTYPES), help="bf16, fp16, fp32, fp64 (default bf16)")
    add("--batch", type=_sizes, help="images (default 128 on a GPU, 8 on a CPU)")
    add("--direction", type=_several(DIRECTIONS), help="fwd, bwd, fwd_bwd (default fwd,fwd_bwd)")
    add("--backend", type=_several(BACKENDS), help=f"of {', '.join(BACKENDS)} (default all)")
    add("--against", type=_several(BASELINES), help=f"of {', '.join(BASELINES)} (default all)")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    add("--threads", type=_sizes, help="of the CPU, such as 1,2 (default: as PyTorch has it)")
    add("--budget", type=float, default=float("inf"), metavar="SECONDS", help="then stop cleanly")
    add("--quick", action="store_true", help="one case of each op, forward, against eager alone")
    add("--json", type=Path, metavar="FILE", help="default: in benchmarks/results/<device>")


def run(args: argparse.Namespace) -> int:
    """0; 1 if one of our kernels is wrong or fails; 130 if interrupted, with all rows kept."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device must be one that PyTorch finds, got cuda and there is no GPU")
    path = args.json or default_path(device)
    try:
        file = BenchFile(path, describe(device))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    print(header(file.environment), end="\n\n")
    try:
        for rows in run_all(jobs(args, device), settings(args, device), file, args.budget):
            print(case_table(rows), end="\n\n", flush=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_where(file)}")
        return INTERRUPTED
    return _finish(file)


def jobs(args, device: str) -> list[Job]:
    batches = args.batch or [128 if device == "cuda" else 8]
    directions = args.direction or (["fwd"] if args.quick else ["fwd", "fwd_bwd"])
    dtypes = [DTYPES[name] for name in args.dtype or ["bf16"]]
    if args.models:
        cases, directions = [ModelCase(name) for name in args.models], ["fwd"]
    else:
        cases = select([op for names in args.ops for op in names], first_only=args.quick)
    return [
        Job(case, batch, dtype, direction, threads)
        for threads in args.threads or [None]
        for direction in directions
        for dtype in dtypes
        for batch in batches
        for case in cases
    ]


def settings(args, device: str) -> Settings:
    against = ["eager"] if args.quick else BASELINES
    return Settings(
        device=device,
        against=tuple(against if args.against is None else args.against),
        backends=tuple(args.backend or (["auto"] if args.models else BACKENDS)),
        seconds=SECONDS[args.quick],
    )


def _finish(file: BenchFile) -> int:
    for sentence in file.left_out:
        print(f"left out: {sentence}")
    wrong = [row for row in file.rows if row["mark"] == "wrong" and row["ours"]]
    for row in wrong:
        print("WRONG:", *(row[name] for name in KEY))
    print(_where(file))
    return 1 if wrong or file.failed else 0


def _where(file: BenchFile) -> str:
    place = "not written (no --json FILE)" if file.path is None else f"in {file.path}"
    return f"{len(file.rows)} rows {place}"
