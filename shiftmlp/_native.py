"""Loads the compiled libraries, or keeps the sentence why it could not. Compiles nothing."""

import ctypes
import functools
import struct
from pathlib import Path

import torch

try:
    from . import _host
except ImportError:
    _host = None

_BUILD = "pip install --no-build-isolation builds it, or says what is missing"
# What is asked of a library besides its ops.
_FUNCTIONS = {"_C_cpu.so": "shiftmlp_cpu_engine", "_C_cuda.so": "shiftmlp_cuda_archs"}


def _truncated(path: Path) -> str | None:
    """A file cut short can kill the process when it is loaded, so its length is checked before."""
    header = path.read_bytes()[:64]
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return f"{path} is not a shared library"
    start = struct.unpack_from("<Q", header, 40)[0]
    entry, count = struct.unpack_from("<HH", header, 58)
    if path.stat().st_size < start + entry * count:
        return f"{path} is cut short: {path.stat().st_size} of {start + entry * count} bytes"
    return None


def build_info() -> dict[str, str]:
    """The compiler and the torch that were used; empty where the host module is missing."""
    return _host.build_info() if _host else {}


def load(path: Path) -> str | None:
    """Loads the library at ``path``; the reason if that fails."""
    try:
        if not path.is_file():
            return f"{path.name} was not built with this package ({_BUILD})"
        if reason := _truncated(path):
            return reason
        torch.ops.load_library(path)
        if not hasattr(ctypes.CDLL(str(path)), _FUNCTIONS[path.name]):
            return f"{path.name} was built with another version of this package ({_BUILD})"
    except (OSError, RuntimeError) as error:
        built_for = build_info().get("torch", "unknown")
        cause = error.__cause__ or error  # the linker's words, which torch wraps
        return f"built for torch {built_for}, this is torch {torch.__version__}: {cause}"
    return None


_reasons = {name: load(Path(__file__).with_name(f"_C_{name}.so")) for name in ("cpu", "cuda")}


def why_not(name: str) -> str | None:
    """Why the library "cpu" or "cuda" cannot be used, or None."""
    return _reasons[name]


@functools.cache
def cuda_archs() -> tuple[str, ...]:
    """What _C_cuda has code for, as in TORCH_CUDA_ARCH_LIST."""
    library = ctypes.CDLL(str(Path(__file__).with_name("_C_cuda.so")))
    library.shiftmlp_cuda_archs.restype = ctypes.c_char_p
    return tuple(library.shiftmlp_cuda_archs().decode().replace(" ", ";").split(";"))


@functools.cache
def lacks_image(device: torch.device) -> str | None:
    """Why no code in _C_cuda runs on ``device``, or None."""
    found = torch.cuda.get_device_capability(device)
    if any(_runs_on(arch, found) for arch in cuda_archs()):
        return None
    name = ".".join(map(str, found))
    return f"it has code for {', '.join(cuda_archs())}, the device needs {name}"


def _runs_on(arch: str, found: tuple[int, int]) -> bool:
    major, minor = arch.removesuffix("+PTX").split(".")
    # An architecture with a letter runs on that device alone, and so does its PTX.
    if minor[-1].isalpha():
        return found == (int(major), int(minor[:-1]))
    needed = int(major), int(minor)
    return needed <= found and (needed[0] == found[0] or arch.endswith("+PTX"))


@functools.cache
def cpu_engine() -> str | None:
    """The instruction set that the CPU kernels use; ATEN_CPU_CAPABILITY may ask for less."""
    if _reasons["cpu"]:
        return None
    library = ctypes.CDLL(str(Path(__file__).with_name("_C_cpu.so")))
    library.shiftmlp_cpu_engine.restype = ctypes.c_char_p
    return library.shiftmlp_cpu_engine().decode()


def cpu_features() -> dict[str, bool]:
    """Instruction sets of this machine, by name; empty where the host module is missing."""
    return _host.cpu_features() if _host else {}


def cpu_vendor() -> str | None:
    """Who made the processor: "intel", "amd" or "other"; None without the host module."""
    return _host.cpu_vendor() if _host else None


@functools.cache
def peak_rates() -> dict[str, float]:
    """Measured multiply-add FLOP/s of one core, by dtype; empty where there is no code for it."""
    return _host.peak_rates() if _host else {}
