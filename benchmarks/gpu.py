"""What ``make gpu`` runs: builds in place, tests on the GPU, measures, within ``$BUDGET`` seconds.

Logs and the bench file go to ``$OUT``, or to benchmarks/results/<device>. Each is written as it
comes, so a run that is cut off keeps what it had. Nothing is downloaded.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
BUDGET = float(os.environ.get("BUDGET", "540"))
TAIL = 12  # lines of a log that are shown
GRACE = 5  # seconds for a step that is told to stop
# The CUDA kernels on the tests' samples, each once.
SMALL = ["-m", "pytest", "tests/test_kernels.py", "-m", "gpu", "-k", "good and -cuda- and bfloat16"]


def find_sanitizer() -> str | None:
    """compute-sanitizer, from the PATH or the toolkit that CUDA_HOME names."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    return shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:{toolkit}")


def step(name: str, command: list[str], seconds: float, out: Path, under: tuple = ()) -> int:
    """Run one step with its output in ``<name>.log``, perhaps ``under`` another program; a step
    that takes too long is ended."""
    log = out / f"{name}.log"
    began = time.monotonic()
    environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONPATH=str(ROOT))
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*under, sys.executable, *command], cwd=ROOT, env=environment, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = _stop(process)
    print(f"== {name}: exit {status} after {time.monotonic() - began:.0f} s, {log}")
    print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL:]), flush=True)
    return status


def _stop(process: subprocess.Popen) -> int:
    # Its own session, so that compilers and workers that it started end with it.
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu: PyTorch finds no GPU here")
        return 2
    sys.path.insert(0, str(ROOT))
    from shiftmlp.bench.environment import slug

    end = time.monotonic() + BUDGET
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / slug("cuda"))
    out.mkdir(parents=True, exist_ok=True)

    def left(share: float = 1.0) -> float:
        return share * (end - time.monotonic() - 2 * GRACE)

    build = ["setup.py", "build_ext", "--inplace"]
    tests = ["-m", "pytest", "-m", "gpu and not slow", "--tb=short"]
    statuses = [
        step("build", build, left(0.5), out),
        # What the kernels are made of, before them.
        step("conformance", [*tests, "tests/test_primitives.py"], left(0.3), out),
        step("tests", [*tests, "tests"], left(0.5), out),
    ]
    if sanitizer := find_sanitizer():
        for tool in ("memcheck", "racecheck"):
            under = sanitizer, f"--tool={tool}", "--error-exitcode=9"
            statuses.append(step(tool, SMALL, left(0.2), out, under))
    seconds = left()
    bench = ["benchmarks/run.py", "--device=cuda", f"--json={out / 'bench.json'}"]
    statuses.append(step("bench", [*bench, f"--budget={seconds:.0f}"], seconds, out))
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
