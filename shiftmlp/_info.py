"""What this installation is made of and what it can run: ``backends`` and ``info``."""

import importlib.metadata
import os
import platform

import torch

from ._settings import _settings
from ._version import __version__

PACKAGES = ("numpy", "triton", "timm", "torchvision", "rich", "matplotlib")
VARIABLES = (
    "SHIFTMLP_BACKEND", "SHIFTMLP_DISABLE", "SHIFTMLP_LOG", "SHIFTMLP_CACHE_DIR", "SHIFTMLP_BUILD",
    "SHIFTMLP_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CUDA_HOME", "TRITON_INTERPRET",
    "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "NO_COLOR",
)  # fmt: skip


def backends() -> dict[str, str]:
    """For each backend "available", or the sentence why no kernel of it can run here.

    An available backend may still refuse certain inputs; ``shiftmlp.explain(model)`` tells.
    """
    from . import _native
    from .ops import _triton

    reasons = {
        "cuda": _native.why_not("cuda") or _no_gpu_for_cuda(_native),
        "triton": _triton.why_not(),
        "cpu": _native.why_not("cpu"),
        "reference": None,
    }
    return {name: reason or "available" for name, reason in reasons.items()}


def info() -> dict:
    """Versions, processor, GPUs, backends, build and settings: plain values, fit for JSON."""
    from . import _native

    return {
        "shiftmlp": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "packages": {name: _version_of(name) for name in PACKAGES},
        "cpu": {
            "name": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "engine": _native.cpu_engine(),
            "features": [name for name, has in _native.cpu_features().items() if has],
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "build": _native.build_info(),
        "backends": backends(),
        "settings": {"backend": _settings.backend, "disabled": _settings.disabled},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _no_gpu_for_cuda(native) -> str | None:
    if not torch.cuda.is_available():
        return "there is no GPU"
    return native.lacks_image(torch.device("cuda", torch.cuda.current_device()))


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.partition(":")[2] for line in file if line.startswith("model name"))
            return next(names, platform.machine()).strip()
    except OSError:
        return platform.processor() or platform.machine()


def _gpu(index: int) -> dict:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }
