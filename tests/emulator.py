"""The CUDA kernels in csrc/emulator, run on tensors in the CPU's memory.

As the build made them, in the module ``shiftmlp._emulator``; or with a bug planted in a kernel, or
so that races are told: then the same module is linked of the build's objects and of those that are
compiled here. Whatever is made is kept by content under ``build/objects``.
"""

import fcntl
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import races
import torch
from torch import Tensor

CSRC = Path(__file__).parents[1] / "csrc"
sys.path.append(str(CSRC))

import commands  # noqa: E402

ROOT = CSRC.parent
SOURCES = sorted(path for glob in commands.SOURCES["_emulator"] for path in CSRC.glob(glob))
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")
CACHE = (ROOT / "build/objects").resolve()  # which copies of the tree may share
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # as in csrc/dispatch.h
PLANTED_FLAGS = ["-w", "-O0", "-g0"]  # runs little, so what counts is how soon it is compiled
INCLUDE = Path(torch.__file__).with_name("include")
TORCH = [f"-isystem{INCLUDE}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# Without USE_CUDA: for the emulator. Adapters run little, too.
TORCH += ['-DSHIFTMLP_CUDA_ARCHS=""', "-DCUDART_VERSION=0", "-O0"]


loaded: list[ModuleType] = []


def missing() -> str | None:
    """What keeps the emulator from running here."""
    if platform.machine() != "x86_64":
        return "the emulator switches stacks on x86-64 only"
    if not shutil.which(commands.CXX[0]):
        return f"no compiler {commands.CXX[0]}"
    built = commands.CXXFLAGS or importlib.util.find_spec("shiftmlp._emulator")
    return None if built else "_emulator was not built with this package"


def build(source="", right="", wrong="", kernel="", find_races=races.WANTED) -> ModuleType:
    """The module; with ``wrong`` in the place of ``right``, which stands once in ``source``.

    That may be a header, such as "cuda/tile.h": all that include it are compiled with the bug, or
    ``kernel`` alone. CXXFLAGS ask for other objects than the build's.
    """
    if not source and not find_races and not commands.CXXFLAGS:
        return _built()
    for earlier in loaded:
        earlier.rest()
    loaded.append(load(_link(_compile_all(source, right, wrong, kernel, find_races))))
    return loaded[-1]


def _built() -> ModuleType:
    module = importlib.import_module("shiftmlp._emulator")
    made_of = {file for path in SOURCES for file in commands.files_of(path)}
    newest = max(file.stat().st_mtime for file in made_of)
    assert Path(module.__file__).stat().st_mtime >= newest, "csrc changed: build _emulator again"
    return module


def load(path: Path) -> ModuleType:
    """By a name of its own: pybind11 gives a module that it knows by name again."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}._emulator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def some(bugs: list) -> list:
    """Every fifth of the bugs to plant, each of which has to be compiled; all of them if
    SHIFTMLP_EVERY_BUG is set."""
    return bugs if os.environ.get("SHIFTMLP_EVERY_BUG") else bugs[::5]


def holder(source: str, text: str) -> str:
    """The kernel for sm_90a, or that of its own headers, in which the text stands."""
    files = [f for f in commands.files_of(CSRC / "cuda" / source) if f.stem.endswith("_sm90")]
    found = [f.name for f in files if text in f.read_text()]
    assert len(found) == 1, f"{text!r} stands in {found}"
    return found[0]


def build_ops(schemas: bool) -> Path:
    """The same with the kernels' adapters, which make them ops of ``torch.ops.shiftmlp_cuda`` for
    tensors in the CPU's memory; ``schemas``: nothing else has declared those."""
    adapters = sorted(CSRC.glob("cuda/*_op.cpp")) + [CSRC / "cuda/library.cpp"] * schemas
    objects = _compile_all(find_races=races.WANTED)
    objects += _parallel(lambda path: _compile(path, flags=TORCH), adapters)
    return _link(objects, "-Wl,--no-as-needed", f"-L{INCLUDE.parent}/lib", "-ltorch", "-ltorch_cpu")


def _compile_all(source="", right="", wrong="", kernel="", find_races=False) -> list[Path]:
    planted = [
        path for path in SOURCES
        if source and any(file.match(source) for file in commands.files_of(path))
        and kernel in ("", path.name)
    ]  # fmt: skip

    def compile_one(path: Path) -> Path:
        bug = (source, right, wrong) if path in planted else None
        return _compile(path, bug, find_races=find_races)

    # Of a function that several objects have, the first one's is linked.
    return _parallel(compile_one, planted + [path for path in SOURCES if path not in planted])


def _parallel(compile_one, paths: list[Path]) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, paths))


def _compile(path: Path, bug=None, flags=(), find_races=False) -> Path:
    command = [*commands.compilers("_emulator")[path.suffix], *flags]
    command += PLANTED_FLAGS if bug else []
    if find_races and path.suffix == ".cu":
        compiler = races.clang() or commands.CXX
        command = [*compiler, *command[len(commands.CXX) :], *races.FLAGS]
    if not bug:
        return _object([*command, "-c"], path)
    source, right, wrong = bug

    def read(path: Path) -> str:
        text = path.read_text()
        if not path.match(source):
            return text
        assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {source}"
        return text.replace(right, wrong)

    text = _with_headers(path, read, [path]) if source.endswith(".h") else read(path)
    command += _precompiled(command)
    command += ["-x", "c++", "-", "-c", f"-iquotecsrc/{path.parent.name}"]
    text = f'# 1 "{path.relative_to(ROOT)}"\n{text}'
    return _make(commands.kept_as([*command, text], path), command, text)


def _precompiled(command: list[str]) -> list[str]:
    """Options that bring the standard library's headers, which take the compiler as long as most
    kernels do."""
    headers = CSRC / "emulator/standard.h"
    command = [*command, "-x", "c++-header", "-c"]
    name = commands.kept_as(command, headers)
    _make(f"{name}.gch", [*command, str(headers.relative_to(ROOT))])
    return ["-include", str(CACHE / name)]


def _with_headers(path: Path, read, files: list[Path]) -> str:
    """The text of a file with those that it includes in their places, each one once."""

    def put(include: re.Match) -> str:
        header = (path.parent / include[1]).resolve()
        if header in files:
            return ""
        files.append(header)
        return _with_headers(header, read, files)

    return re.sub(r'#include "(.*)"', put, read(path))


def _object(command: list[str], path: Path) -> Path:
    name = commands.kept_as(command, path)
    return _make(name, [*command, str(path.relative_to(ROOT))])


def _link(objects: list[Path], *libraries: str) -> Path:
    command = [*commands.CXX, "-shared", *commands.LDFLAGS, *map(str, objects), *libraries]
    return _make(hashlib.sha256(" ".join(command).encode()).hexdigest()[:20] + ".so", command)


def build_for_gpu() -> ModuleType:
    """The same functions for a GPU, whose memory their tensors lie in: of the kernels as the build
    made them, or, where it made none, for compute capability 9.0.

    No word from nvcc passes: not of spills, not of products that it had to serialize.
    """
    nvcc = [*commands.compilers("_C_cuda")[".cu"], "-c", "-gencode=arch=compute_90a,code=sm_90a"]

    def compile_one(path: Path) -> Path:
        built = CACHE / commands.kept_as(commands.compile_command("_C_cuda", path), path)
        if not built.exists():
            return _object([*nvcc, "-Xptxas=--warn-on-spills"], path)
        assert not Path(f"{built}.txt").read_text(), path
        return built

    objects = _parallel(compile_one, [path for path in SOURCES if path.suffix == ".cu"])
    host = [*commands.CXX, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-DUSE_CUDA", "-c"]
    host += [f"-isystem{commands.CUDA_HOME}/include", *commands.pybind()]
    objects.append(_object(host, CSRC / "emulator/library.cpp"))
    return load(_link(objects, *commands.libraries("_C_cuda")))


def _make(name: str, command: list[str], text: str = "") -> Path:
    """What the command makes of the text, out of the cache if it was made before. A process that
    finds another one making it waits."""
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                command = [*command, "-o", f"{path}.new"]
                env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # a sanitizer's
                done = subprocess.run(
                    command, input=text, text=True, capture_output=True, cwd=ROOT, env=env
                )
                assert done.returncode == 0 and not done.stderr, done.stderr
                Path(f"{path}.new").rename(path)
    return path


def spec_of(shift) -> str | None:
    return None if shift is None else shift.spec


def spatial_shift(library, seed: int, x, shift, backward: bool = False) -> Tensor:
    """The shift of a contiguous map, or the adjoint of one with the border "keep"."""
    y = fenced(torch.full_like(x, float("nan")))
    run(library.spatial_shift, seed, y, x, y, shift.spec, backward)
    return y


def hopper_example(library, seed: int, x, weight, x_through_registers: bool) -> Tensor:
    """weight @ x of every image, by TMA and wgmma."""
    y = fenced(x.new_full((len(x), len(weight), x.shape[2]), float("nan")))
    run(library.hopper_example, seed, y, x, weight, y, x_through_registers)
    return y


def conform(library, primitive: str, out: Tensor, a=None, b=None, *args, seed: int = 0) -> Tensor:
    """``out``, filled by the kernel of csrc/emulator/conformance.h that tries the primitive."""
    getattr(library, primitive)(seed, a, b, out, *args)
    return out


def run(kernel, seed: int, y: Tensor, *args) -> None:
    """Calls a kernel that writes y, which ``fenced`` made."""
    kernel(seed, *args)
    assert fence_stands(y), f"seed {seed}: written outside of y"


# Elements, more than any access misses by, planted bugs included. AddressSanitizer has a fence of
# its own around memory, which sees reads whose value has no effect.
FENCE = 0 if "-fsanitize=address" in " ".join(commands.CXXFLAGS) else 1 << 14


def fenced(t: Tensor, shift: int = 0) -> Tensor:
    """A copy of t between NaNs: what is read from outside shows. ``shift`` spoils its alignment."""
    storage = t.new_full((t.numel() + 2 * FENCE + shift,), float("nan"))
    inside = storage[FENCE + shift :][: t.numel()].view(t.shape)
    return inside.copy_(t)


def fence_stands(t: Tensor) -> bool:
    """Whether all is NaN still around a tensor that ``fenced`` made."""
    storage = t.new_empty(0).set_(t.untyped_storage())
    first = t.storage_offset()
    outside = torch.cat([storage[:first], storage[first + t.numel() :]])
    return bool(outside.isnan().all())
