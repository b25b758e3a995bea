"""Builds csrc/emulator with the CUDA kernels and runs them on tensors in the CPU's memory.

Built on demand, object by object, and kept under ``build/emulator`` by content: no installation
carries a library for tests, and the same few lines build a kernel with a planted bug in it.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import races
import torch
from torch import Tensor

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = sorted([*CSRC.glob("emulator/*.c*"), *CSRC.glob("cuda/*.cu")])
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")
CACHE = (CSRC.parent / "build/emulator").resolve()  # which copies of the tree may share
CXX = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += ["-Icsrc/emulator/nvidia", *shlex.split(os.environ.get("CXXFLAGS", ""))]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # as in csrc/dispatch.h
PLANTED_FLAGS = ["-w", "-O0", "-g0"]  # runs little, so what counts is how soon it is compiled
INCLUDE = Path(torch.__file__).with_name("include")
TORCH = [f"-isystem{INCLUDE}", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
TORCH += ['-DSHIFTMLP_CUDA_ARCHS=""', "-DCUDART_VERSION=0"]  # without USE_CUDA: for the emulator
LDFLAGS = shlex.split(os.environ.get("LDFLAGS", ""))


def missing() -> str | None:
    """What keeps the emulator from being built here."""
    if platform.machine() != "x86_64":
        return "the emulator switches stacks on x86-64 only"
    return None if shutil.which(CXX[0]) else f"no compiler {CXX[0]}"


def build(source="", right="", wrong="", find_races: bool = races.WANTED) -> ctypes.CDLL:
    """The library; with ``wrong`` in the place of ``right``, which stands once in ``source``.

    That may be a header, such as "cuda/tile.h": all that include it are compiled with the bug.
    """
    objects = [_compile(path, source, right, wrong, find_races=find_races) for path in SOURCES]
    return ctypes.CDLL(str(_make(".so", [*CXX, "-shared", *LDFLAGS, *map(str, objects)])))


def some(bugs: list) -> list:
    """Every third of the bugs to plant, each of which has to be compiled; all of them if
    SHIFTMLP_EVERY_BUG is set."""
    return bugs if os.environ.get("SHIFTMLP_EVERY_BUG") else bugs[::3]


def holder(source: str, text: str) -> str:
    """The kernel for sm_90a, or that of its own headers, in which the text stands."""
    files = [CSRC / "cuda" / source]
    _with_headers(files[0], Path.read_text, files)
    found = [f.name for f in files if f.stem.endswith("_sm90") and text in f.read_text()]
    assert len(found) == 1, f"{text!r} stands in {found}"
    return found[0]


def build_ops(schemas: bool) -> Path:
    """The same with the kernels' adapters, which make them ops of ``torch.ops.shiftmlp_cuda`` for
    tensors in the CPU's memory; ``schemas``: nothing else has declared those."""
    adapters = sorted(CSRC.glob("cuda/*_op.cpp")) + [CSRC / "cuda/library.cpp"] * schemas
    objects = [_compile(path, find_races=races.WANTED) for path in SOURCES]
    objects += [_compile(path, flags=TORCH) for path in adapters]
    command = [*CXX, "-shared", *LDFLAGS, *map(str, objects), "-Wl,--no-as-needed"]
    return _make(".so", [*command, f"-L{INCLUDE.parent}/lib", "-ltorch", "-ltorch_cpu"])


def _compile(path: Path, source="", right="", wrong="", flags=(), find_races=False) -> Path:
    def read(path: Path) -> str:
        text = path.read_text()
        if not source or not path.match(source):
            return text
        assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {source}"
        return text.replace(right, wrong)

    files = [path]
    text = _with_headers(path, read, files) if source.endswith(".h") else read(path)
    flags = [*FLAGS, *flags]
    if source and any(file.match(source) for file in files):
        flags += PLANTED_FLAGS
    else:
        text = path.read_text()
    compile_text = ["-x", "c++", "-", "-c", f"-iquotecsrc/{path.parent.name}"]
    line = f'# 1 "{path.relative_to(CSRC)}"\n'
    compiler = CXX
    if find_races and path.suffix == ".cu":
        compiler = races.clang() or CXX
        flags += races.FLAGS
    return _make(".o", [*compiler, *flags, *compile_text], line + text + _headers())


def _with_headers(path: Path, read, files: list[Path]) -> str:
    """The text of a file with those that it includes in their places, each one once."""

    def put(include: re.Match) -> str:
        header = (path.parent / include[1]).resolve()
        if header in files:
            return ""
        files.append(header)
        return _with_headers(header, read, files)

    return re.sub(r'#include "(.*)"', put, read(path))


def build_for_hopper() -> ctypes.CDLL:
    """The same functions for a GPU of compute capability 9.0; their pointers are the device's.

    No word from the compiler passes: not of spills, not of products that it had to serialize.
    """
    sources = [CSRC / "emulator/library.cpp", *CSRC.glob("emulator/*.cu"), *CSRC.glob("cuda/*.cu")]
    command = [str(NVCC), "-O3", "--threads=2", "-gencode=arch=compute_90a,code=sm_90a", "-shared"]
    command += ["-Xptxas=--warn-on-spills", "-Xcompiler=-fPIC,-Wall,-Wextra", "-x", "cu"]
    text = "".join(path.read_text() for path in sources) + _headers()
    return ctypes.CDLL(str(_make(".so", [*command, *map(str, sources)], text)))


@functools.cache
def _headers() -> str:
    """A comment that changes whenever a header does."""
    text = b"".join(path.read_bytes() for path in sorted(CSRC.rglob("*.h")))
    return f"// {hashlib.sha256(text).hexdigest()}\n"


def _make(suffix: str, command: list[str], text: str = "") -> Path:
    """What the command makes of the text, out of the cache if it was made before."""
    name = hashlib.sha256("\0".join([*command, text]).encode()).hexdigest()[:20] + suffix
    if not (CACHE / name).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder, name)
            done = subprocess.run(
                [*command, "-o", made], input=text, text=True, capture_output=True, cwd=CSRC.parent
            )
            assert done.returncode == 0 and not done.stderr, done.stderr
            made.rename(CACHE / name)
    return CACHE / name


class Rows(ctypes.Structure):
    """This and the next four: as in csrc/cuda/product.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride_b", ctypes.c_int64),
        ("stride", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, t: Tensor | None):
        """Of (images, rows, columns), or of (rows, columns), which all images share."""
        return cls() if t is None else cls(t.data_ptr(), *[0, *t.stride()][-3:-1])


class Vector(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32)]

    @classmethod
    def of(cls, t: Tensor | None):
        return cls() if t is None else cls(t.data_ptr(), DTYPES.index(t.dtype))


ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu")  # as in csrc/activation.h


class Operand(ctypes.Structure):
    _fields_ = [
        ("rows", Rows),
        ("sums_rows", ctypes.c_bool),
        ("shift", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in "HW"),
        *((name, ctypes.c_void_p) for name in ("mean", "rstd")),
        *((name, Vector) for name in ("weight", "bias")),
        ("factor", Rows),
    ]


class Result(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("stride_b", "stride")),
        *((name, Vector) for name in ("row_bias", "column_bias")),
        ("activation", ctypes.c_int32),
        ("slope_of", Rows),
        ("scale", Vector),
        *((name, Rows) for name in ("factor", "residual")),
        ("inner", ctypes.c_void_p),
    ]


class Product(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        *((name, Operand) for name in ("columns", "rows")),
        ("result", Result),
        ("images", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("M", "N", "K", "splits")),
    ]


class HopperExampleParams(ctypes.Structure):
    """As in csrc/emulator/hopper_example.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "y")),
        ("B", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("S", "T", "C")),
        ("weight_stride", ctypes.c_int64),
        ("x_through_registers", ctypes.c_bool),
    ]


def product(library, seed: int, params: Product, shifts, y: Tensor) -> None:
    """Fills the result that ``params`` tells of, in y; ``shifts``: of the columns and the rows."""
    run(library.product, seed, y, params, *map(spec_of, shifts))


def product_sm90(library, seed: int, params: Product, shift, moves, grid, y: Tensor) -> None:
    """The same by the kernel of sm_90a; ``shift``: of the rows, ``moves``: of the result."""
    run(library.product_sm90, seed, y, params, spec_of(shift), spec_of(moves), *grid)


def spec_of(shift) -> bytes | None:
    return None if shift is None else shift.spec.encode()


def spatial_shift(library, seed: int, x, shift, backward: bool = False) -> Tensor:
    """The shift of a contiguous map, or the adjoint of one with the border "keep"."""
    y = fenced(torch.full_like(x, float("nan")))
    sizes = (ctypes.c_int32 * 5)(*x.shape, x.element_size())
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
    dtype = DTYPES.index(x.dtype)
    run(library.spatial_shift, seed, y, *pointers, sizes, shift.spec.encode(), backward, dtype)
    return y


def hopper_example(library, seed: int, x, weight, x_through_registers: bool) -> Tensor:
    """weight @ x of every image, by TMA and wgmma."""
    (B, S, C), T = x.shape, weight.shape[0]
    y = fenced(x.new_full((B, T, C), float("nan")))
    pointers = [t.data_ptr() for t in (x, weight, y)]
    params = HopperExampleParams(*pointers, B, S, T, C, weight.stride(0), x_through_registers)
    run(library.hopper_example, seed, y, ctypes.byref(params), DTYPES.index(y.dtype))
    return y


def conform(library, primitive: str, out: Tensor, a=None, b=None, *args, seed: int = 0) -> Tensor:
    """``out``, filled by the kernel of csrc/emulator/conformance.h that tries the primitive."""
    pointers = [None if t is None else t.data_ptr() for t in (a, b, out)]
    tensors = (ctypes.c_void_p * 3)(*pointers)
    call(getattr(library, f"conform_{primitive}"), seed, tensors, *args)
    return out


def call(kernel, seed: int, *args) -> None:
    """RuntimeError with the emulator's message if the run failed."""
    kernel.restype = ctypes.c_char_p
    message = kernel(ctypes.c_uint64(seed), *args)
    if message:
        raise RuntimeError(f"seed {seed}: {message.decode()}")


def run(kernel, seed: int, y: Tensor, *args) -> None:
    """The same of a kernel that writes y, which ``fenced`` made."""
    call(kernel, seed, *args)
    assert fence_stands(y), f"seed {seed}: written outside of y"


# Elements, more than any access misses by, planted bugs included. AddressSanitizer has a fence of
# its own around memory, which sees reads whose value has no effect.
FENCE = 0 if "-fsanitize=address" in os.environ.get("CXXFLAGS", "") else 1 << 14


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
