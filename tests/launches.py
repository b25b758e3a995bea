"""What the adapters of the CUDA ops launch for tensors of any size, on two multiprocessors: every
kernel with its cluster and all its blocks. Nothing runs, so that no memory is ever touched.

``python tests/launches.py`` answers one JSON list with another, for it has to be a process of its
own: a library with the adapters takes the place of one that runs them.
"""

import ctypes
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
RUN = "_ZN8emulator3runEi4dim3S0_mPFvPKvES2_"
SYMBOL = re.compile(r"^([0-9a-f]+) \w (.*)", re.MULTILINE)


def record(jobs: list[tuple]) -> list[list[tuple[str, int, int]]]:
    """Of every (op, a case's sizes, batch, direction, backend)."""
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [[tuple(one) for one in launches] for launches in json.loads(done.stdout)]


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import emulated
    import emulator
    import torch
    from predict import call_of

    from shiftmlp.bench.cases import Case

    recorder = emulator._compile(Path(__file__).with_suffix(".cpp"))
    with mock.patch.object(emulator.commands, "LDFLAGS", [str(recorder), f"-Wl,--wrap={RUN}"]):
        library = ctypes.CDLL(emulated.library().__file__)
    library.launches.restype = ctypes.c_char_p
    names = kernels(library._name)
    found = []
    for op, sizes, batch, direction, backend in json.load(sys.stdin):
        case = Case(op, "", tuple(map(tuple, sizes)))
        dtype = torch.float32 if backend == "emulated_tf32" else torch.bfloat16
        call_of(case, batch, direction, backend, "cpu", dtype)()
        told = list(map(int, library.launches().split()))
        found.append([
            (names[place], cluster, blocks)
            for place, cluster, blocks in zip(told[::3], told[1::3], told[2::3], strict=True)
        ])  # fmt: skip
    print(json.dumps(found))


@functools.cache
def kernels(library: str) -> dict[int, str]:
    """By their places in the library."""
    told = subprocess.run(["nm", "-C", library], capture_output=True, text=True, check=True).stdout
    names = {}
    for place, name in SYMBOL.findall(told):
        name = re.sub(r"\(anonymous namespace\)::|shiftmlp::|^void ", "", name)
        if re.match(r"\w+_kernel\b", name):
            template, found, _ = name.partition(">(")
            names[int(place, 16)] = template + ">" if found else name.partition("(")[0]
    return names


if __name__ == "__main__":
    main()
