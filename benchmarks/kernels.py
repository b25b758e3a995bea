"""Compiles every Triton and CUDA kernel for every GPU and prints what the machine code says.

    python benchmarks/kernels.py [--only triton|cuda] [--arch sm_90 ...] [--tiles] [--json FILE]

Exits with 1 if one spills or wants more shared memory than its GPU has. No GPU is needed: the
Triton cases run the launchers on meta tensors against a driver that only names a target, so what
is compiled is what a launch on such tensors would compile.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine_code import SHARED_LIMIT, MachineCode, find_tool, read_amdgcn, read_cubin  # noqa: E402

TRITON_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
CUDA_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
SOURCES = ROOT / "csrc" / "cuda"


class Target:
    """A driver for Triton that has no device: every target is a device of its own."""

    def __init__(self, arch: str):
        from triton.backends.compiler import GPUTarget

        nvidia = arch.startswith("sm_")
        self.target = GPUTarget("cuda", int(arch[3:]), 32) if nvidia else GPUTarget("hip", arch, 64)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target

    def get_current_stream(self, device):
        return 0


def triton_modules() -> list[str]:
    files = sorted((ROOT / "shiftmlp" / "ops").glob("*/triton_kernels.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


def compile_triton(module: str, arch: str, table: str) -> list[dict]:
    """Every kernel that the launchers in ``module`` launch for its table of cases, if it has it."""
    from triton.runtime import driver

    from shiftmlp.ops import _triton

    driver.set_active(Target(arch))
    rows = []
    for case, (launcher, inputs) in getattr(importlib.import_module(module), table, {}).items():
        compiled = []

        def warm_up(kernel, grid, *args, compiled=compiled, **constants):
            compiled.append(kernel.warmup(*args, grid=(grid,), **constants))

        with mock.patch.object(_triton, "launch", warm_up):
            launcher(*inputs)
        rows += [_row("triton", module.split(".")[-2], case, arch, _read(k)) for k in compiled]
    return rows


def _read(compiled) -> MachineCode:
    if "cubin" in compiled.asm:
        return read_cubin(compiled.asm["cubin"], compiled.metadata.shared)[0]
    return read_amdgcn(compiled.metadata.name, compiled.asm["amdgcn"])


def compile_cuda(source: str, arch: str) -> list[dict]:
    """Every kernel of one .cu file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [find_tool("nvcc"), "-cubin", "-O3", f"-arch={arch}", source, "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source} does not compile for {arch}:\n{done.stderr}")
        return [_row("cuda", Path(source).stem, "", arch, code) for code in read_cubin(cubin)]


def _row(backend: str, op: str, case: str, arch: str, code: MachineCode) -> dict:
    row = {"backend": backend, "op": op, "case": case, "arch": arch} | asdict(code)
    return row | {
        "instructions": code.instructions.total(),
        "resident": code.resident(arch),
        "occupancy": code.occupancy(arch),
    }


def line(row: dict) -> str:
    """One kernel in one line."""
    counts = [f"{name} x{n}" for kind in ("matrix", "memory") for name, n in row[kind].items()]
    return (
        f"{row['backend']:6} {row['arch']:7} {row['registers']:3} registers, stack {row['stack']}, "
        f"spills {row['spills']}, shared {row['shared']:6}, occupancy {row['occupancy']:4.0%}, "
        f"{row['instructions']:5} instructions {' '.join(counts)} | {row['kernel']} {row['case']}"
    )


def fault(row: dict) -> str | None:
    """What no kernel may do."""
    if row["stack"] or row["spills"]:
        return "spills"
    return "shared memory" if row["shared"] > SHARED_LIMIT[row["arch"]] else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("triton", "cuda"))
    parser.add_argument("--arch", action="append", help="default: all; may be given repeatedly")
    parser.add_argument("--tiles", action="store_true", help="every entry of the tile tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    # Triton decides at import; an interpreted kernel has no machine code.
    os.environ.pop("TRITON_INTERPRET", None)

    tasks = []
    if options.only != "cuda":
        tasks += [
            (compile_triton, name, arch, "TILE_CASES" if options.tiles else "COMPILE_CASES")
            for name in triton_modules()
            for arch in options.arch or TRITON_ARCHS
        ]
    if options.only != "triton":
        sources = sorted(map(str, SOURCES.glob("*.cu")))
        archs = options.arch or CUDA_ARCHS
        tasks += [
            (compile_cuda, source, arch)
            for source in sources
            for arch in archs
            if arch == "sm_90a" or not source.endswith("_sm90.cu")
        ]

    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for pending in [pool.submit(*task) for task in tasks]:
            for row in pending.result():
                rows.append(row)
                print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    faults = [f"{fault(row)}: {line(row)}" for row in rows if fault(row)]
    print("\n".join(faults) or f"{len(rows)} kernels, none of which spills")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
