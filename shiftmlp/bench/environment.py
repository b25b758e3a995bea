"""Where a measurement was made: what a reader needs to judge it or to repeat it."""

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from .._native import cpu_features, cpu_vendor
from .._version import __version__

ROOT = Path(__file__).resolve().parents[2]
LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def describe(device: str) -> dict:
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "shiftmlp": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(device),
        "instruction sets": " ".join(name for name, has in cpu_features().items() if has),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    if device == "cuda":
        found["cuda"] = torch.version.cuda
        found["driver, clocks, power limit"] = _ask(
            "nvidia-smi", "--format=csv,noheader",
            "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
        )  # fmt: skip
    return found


def command(argv: list[str]) -> str:
    """What was typed, without the folders of this machine, behind what limits its libraries."""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    program = ["-m", "shiftmlp"] if argv[0].endswith("__main__.py") else [Path(argv[0]).name]
    arguments = [re.sub("(^|=)/.*/", r"\1", arg) for arg in argv[1:]]
    return shlex.join([*limits, "python", *program, *arguments])


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def remark(device: str, dtype: torch.dtype) -> str | None:
    """What a reader must know beside a ratio to eager PyTorch."""
    if (
        device == "cpu"
        and dtype == torch.float32
        and cpu_vendor() == "amd"
        and torch.backends.mkl.is_available()
    ):
        return "eager and compiled float32 products run on MKL, which takes its AVX2 path on AMD"
    return None


def slug(device: str) -> str:
    """The folder of a device's results: "nvidia-h200", "cpu-amd-epyc-2c"."""
    name = device_name(device).lower()
    if device == "cpu":
        name = "cpu-" + re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*(?=,)", "", name)
        name = re.sub(r", (\d+) cores$", r"-\1c", name)
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def commit() -> str | None:
    """The checkout's commit, "-dirty" where tracked files differ; None if this is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    return _ask("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")


def default_path(device: str) -> Path | None:
    """Where results go when the command is run from the repository."""
    here = Path.cwd()
    if here != ROOT or not (here / "benchmarks").is_dir():
        return None
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return here / "benchmarks" / "results" / slug(device) / f"{stamp}.json"


def _ask(*command: str) -> str | None:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
