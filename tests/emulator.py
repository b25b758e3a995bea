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

import torch
from torch import Tensor

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = sorted([*CSRC.glob("emulator/*.c*"), *CSRC.glob("cuda/*.cu")])
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")
CACHE = CSRC.parent / "build/emulator"
CXX = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += [f"-I{CSRC}/emulator/nvidia", *shlex.split(os.environ.get("CXXFLAGS", ""))]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # as in csrc/dispatch.h
PLANTED_FLAGS = ["-w", "-O0", "-g0"]  # runs little, so what counts is how soon it is compiled
LDFLAGS = shlex.split(os.environ.get("LDFLAGS", ""))


def missing() -> str | None:
    """What keeps the emulator from being built here."""
    if platform.machine() != "x86_64":
        return "the emulator switches stacks on x86-64 only"
    return None if shutil.which(CXX[0]) else f"no compiler {CXX[0]}"


def build(source: str = "", right: str = "", wrong: str = "") -> ctypes.CDLL:
    """The library; with ``wrong`` in the place of ``right``, which stands once in ``source``, or in
    the headers for sm_90a that it includes."""
    objects = []
    for path in SOURCES:
        text, flags = path.read_text(), FLAGS
        if path.name == source:
            flags = [*FLAGS, *PLANTED_FLAGS]
            text = _with_headers(text)
            assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {source}"
            text = text.replace(right, wrong)
        compile_text = ["-x", "c++", "-", "-c", "-iquote", str(path.parent)]
        line = f'# 1 "{path.relative_to(CSRC)}"\n'
        objects.append(_make(".o", [*CXX, *flags, *compile_text], line + text + _headers()))
    return ctypes.CDLL(str(_make(".so", [*CXX, "-shared", *LDFLAGS, *map(str, objects)])))


def _with_headers(text: str) -> str:
    """The text of a kernel with that of the headers for sm_90a in it."""
    include = re.compile(r'#include "(\w+_sm90.h)"')
    while found := include.search(text):
        header = (CSRC / "cuda" / found[1]).read_text().replace("#pragma once", "")
        first, rest = text[: found.end()], text[found.end() :]
        text = first.replace(found[0], header) + rest.replace(found[0], "")
    return text


def build_for_hopper() -> ctypes.CDLL:
    """The same functions for a GPU of compute capability 9.0; their pointers are the device's.

    No word from the compiler passes: not of spills, not of products that it had to serialize.
    """
    sources = [CSRC / "emulator/library.cpp", *CSRC.glob("emulator/*.cu"), *CSRC.glob("cuda/*.cu")]
    return ctypes.CDLL(str(_make_for_hopper(".so", ["-shared", "-x", "cu"], sources)))


def cubin_for_hopper(source: str) -> Path:
    """The machine code of one file of csrc/cuda, again without a word from the compiler."""
    return _make_for_hopper(".cubin", ["-cubin"], [CSRC / "cuda" / source])


def _make_for_hopper(suffix: str, options: list[str], sources: list[Path]) -> Path:
    command = [str(NVCC), "-O3", "-gencode=arch=compute_90a,code=sm_90a"]
    command += ["-Xptxas=--warn-on-spills", "-Xcompiler=-fPIC,-Wall,-Wextra", *options]
    text = "".join(path.read_text() for path in sources) + _headers()
    return _make(suffix, [*command, *map(str, sources)], text)


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
                [*command, "-o", made], input=text, text=True, capture_output=True
            )
            assert done.returncode == 0 and not done.stderr, done.stderr
            made.rename(CACHE / name)
    return CACHE / name


class TokenLinearParams(ctypes.Structure):
    """As in csrc/cuda/token_linear.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "scale", "residual", "y")),
        ("B", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("S", "T", "C")),
        *((f"x_stride_{name}", ctypes.c_int64) for name in "bs"),
        ("weight_stride", ctypes.c_int64),
        *((f"residual_stride_{name}", ctypes.c_int64) for name in "bt"),
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


def token_linear(library, seed: int, x, weight, bias=None, scale=None, residual=None) -> Tensor:
    """The kernel's result; RuntimeError with the emulator's message if the run failed."""
    (B, S, C), T = x.shape, weight.shape[0]
    y = fenced(x.new_full((B, T, C), float("nan")))
    pointers = [0 if t is None else t.data_ptr() for t in (x, weight, bias, scale, residual, y)]
    strides = (0, 0) if residual is None else residual.stride()[:2]
    params = TokenLinearParams(*pointers, B, S, T, C, *x.stride()[:2], weight.stride(0), *strides)
    _run(library.token_linear, seed, params, y)
    return y


def spatial_shift(library, seed: int, x, shift, backward: bool = False) -> Tensor:
    """The shift of a contiguous map, or the adjoint of one with the border "keep"."""
    y = fenced(torch.full_like(x, float("nan")))
    sizes = (ctypes.c_int32 * 5)(*x.shape, x.element_size())
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
    dtype = DTYPES.index(x.dtype)
    _call(library.spatial_shift, seed, *pointers, sizes, shift.spec.encode(), backward, dtype)
    assert fence_stands(y), f"seed {seed}: written outside of y"
    return y


def hopper_example(library, seed: int, x, weight, x_through_registers: bool) -> Tensor:
    """token_linear without options, by TMA and wgmma."""
    (B, S, C), T = x.shape, weight.shape[0]
    y = fenced(x.new_full((B, T, C), float("nan")))
    pointers = [t.data_ptr() for t in (x, weight, y)]
    params = HopperExampleParams(*pointers, B, S, T, C, weight.stride(0), x_through_registers)
    _run(library.hopper_example, seed, params, y)
    return y


def conform(library, primitive: str, out: Tensor, a=None, b=None, *args, seed: int = 0) -> Tensor:
    """``out``, filled by the kernel of csrc/emulator/conformance.h that tries the primitive."""
    pointers = [None if t is None else t.data_ptr() for t in (a, b, out)]
    tensors = (ctypes.c_void_p * 3)(*pointers)
    _call(getattr(library, f"conform_{primitive}"), seed, tensors, *args)
    return out


def call(kernel, seed: int, y: Tensor, *args) -> None:
    """Runs a kernel that writes y, which ``fenced`` made."""
    _call(kernel, seed, *args)
    assert fence_stands(y), f"seed {seed}: written outside of y"


def _run(kernel, seed: int, params: ctypes.Structure, y: Tensor) -> None:
    call(kernel, seed, y, ctypes.byref(params), DTYPES.index(y.dtype))


def _call(kernel, seed: int, *args) -> None:
    kernel.restype = ctypes.c_char_p
    message = kernel(ctypes.c_uint64(seed), *args)
    if message:
        raise RuntimeError(f"seed {seed}: {message.decode()}")


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
