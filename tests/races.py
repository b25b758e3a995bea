"""The compiler by which csrc/emulator/race.h is told what a kernel reads and writes."""

import functools
import os
import shlex
import shutil
import subprocess

WANTED = "SHIFTMLP_RACES" in os.environ  # in all kernels that emulator.py builds
# Without assumptions about types: clang drops stores to one member of a union that another one's
# reading needs.
FLAGS = ["-fsanitize=thread", "-g1", "-gdwarf-4", "-fno-strict-aliasing", "-w"]


@functools.cache
def clang() -> list[str] | None:
    """``CXX``, or the newest clang++ that is installed, if it is 16 or later: those before tell of
    no copy of a struct."""
    named = shlex.split(os.environ.get("CXX", ""))
    others = [[f"clang++{version}"] for version in ("", *(f"-{n}" for n in range(30, 15, -1)))]
    for command in [named, *others] if named else others:
        if shutil.which(command[0]):
            ask = [*command, "-dM", "-E", "-x", "c++", os.devnull]
            told = subprocess.run(ask, capture_output=True, text=True).stdout.split()
            if "__clang_major__" in told and int(told[told.index("__clang_major__") + 1]) >= 16:
                return command
    return None


def missing() -> str | None:
    """What keeps every race from being found: g++ does not tell of a store of a struct that a
    function returned, nor of a read of one that is passed to it."""
    return None if clang() else "no clang++, 16 or later, is installed, nor named by CXX"
