"""The AVX-512 engines of the CPU kernels on any processor: the same source, whose registers of 64
bytes the compiler makes of smaller ones, with plain code in the place of the few intrinsics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shiftmlp import _native

ROOT = Path(__file__).parent.parent
FLAGS = "-DSHIFTMLP_EMULATED -O1 -Wno-psabi"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("emulated engines"),  # which are built once
    pytest.mark.skipif(
        "avx2" not in _native.cpu_features(), reason="no x86-64, or the native code is not built"
    ),
]

# Our engine alone is forced: PyTorch trusts the variable, and would run what is not there.
FORCED = """
import os, sys
import pytest, torch
torch.backends.cpu.get_cpu_capability()
os.environ["ATEN_CPU_CAPABILITY"] = sys.argv[1].removesuffix("amx")
from shiftmlp import _native
assert _native.cpu_engine() == sys.argv[1]
assert os.path.samefile(os.path.dirname(_native.__file__), sys.argv[2])
sys.exit(pytest.main(["-p", "no:benchmark", *sys.argv[3:]]))
"""


@pytest.fixture(scope="module")
def package():
    """The package with a library of its own, below build; what stands there is built no more."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SHIFTMLP_")}
    env |= {"SHIFTMLP_BUILD": "1", "SHIFTMLP_CUDA": "0", "CXXFLAGS": FLAGS}
    folders = ["--build-base", "build/emulated/base", "--build-lib", "build/emulated/lib"]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", *folders],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build/emulated/lib"


PRODUCTS, GRADIENTS = "every_size or every_number_of_lanes or odd_number", "chunk or affine"
BFLOAT16_GRADIENTS = f"{GRADIENTS} or bfloat16 and gradients_of_many or mlp-gelu-nan"
RUNS = [
    ("avx512", "test_cpu_engine.py", PRODUCTS),
    ("avx512", "test_cpu_gradients.py", GRADIENTS),
    ("avx512_bf16", "test_cpu_engine.py", PRODUCTS),
    ("avx512_bf16", "test_cpu_gradients.py", BFLOAT16_GRADIENTS),
    ("avx512_bf16", "test_kernels.py", "cpu and bfloat16 and not triton and not reference"),
    ("amx", "test_cpu_engine.py", f"{PRODUCTS} or within_its_rounding"),
    ("amx", "test_cpu_gradients.py", BFLOAT16_GRADIENTS),
    ("amx", "test_kernels.py", "cpu and not triton and not reference"),
    ("amx", "test_memory.py", "cpu and guard"),
]


@pytest.mark.parametrize("engine, file, which", RUNS, ids=[f"{run[0]}-{run[1]}" for run in RUNS])
def test_emulated_engine_passes_tests(engine, file, which, package):
    env = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    done = subprocess.run(
        [sys.executable, "-c", FORCED, engine, package / "shiftmlp", file, "-k", which],
        cwd=ROOT / "tests", env=env | {"PYTHONPATH": str(package)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
