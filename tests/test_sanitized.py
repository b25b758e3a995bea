"""Each CUDA kernel in the emulator once under AddressSanitizer and UBSan. `make sanitize` has more,
and the C++ kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulator
import pytest

FLAGS = re.search("^SANITIZE := (.*)", (emulator.ROOT / "Makefile").read_text(), re.MULTILINE)[1]
CHECKS = """
import emulator, test_races, torch
library = emulator.build()
for source, check in test_races.CHECKS.items():
    torch.manual_seed(0)
    check(library, seed=0)
    print(source)
"""


def preloaded() -> list[str]:
    """What has to be there before Python is, by its absolute path if the compiler has it."""
    names = (f"-print-file-name=lib{name}.so" for name in ("asan", "ubsan", "stdc++"))
    ask = (subprocess.run([emulator.commands.CXX[0], name], capture_output=True) for name in names)
    return [told.stdout.decode().strip() for told in ask]


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
def test_the_kernels_are_clean():
    libraries = preloaded()
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("the compiler has no sanitizers")
    env = os.environ | {
        "CXXFLAGS": f"{FLAGS} -O0",
        "LDFLAGS": FLAGS,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # Python's own pools would land on marked stacks of fibers
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, emulator.ROOT))),
    }
    done = subprocess.run([sys.executable, "-c", CHECKS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
