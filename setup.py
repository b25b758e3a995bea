"""Builds the native code: _C_cpu.so and _C_cuda.so on torch's stable ABI, and the torch-free _host;
in a checkout (``pip install -e .``, ``build_ext --inplace``) also _emulator, which tests need.

What cannot be built is left out, with one line that says why; the package works without it.
Environment: SHIFTMLP_BUILD=auto|0|1 (1: fail where anything but _C_cuda cannot be built),
SHIFTMLP_CUDA=auto|0|1 (the same for _C_cuda), TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS, CXX,
CXXFLAGS, LDFLAGS (a sanitizer build has -fsanitize=address,undefined in both of the last two).
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, "csrc")
from commands import CUDA_HOME, CXX, TORCH, build_ninja  # noqa: E402

NAMES = ["_host", "_C_cpu", "_C_cuda"]
if platform.machine() == "x86_64":  # in whose way it switches stacks
    NAMES.append("_emulator")


def switch(name: str) -> str:
    return "SHIFTMLP_CUDA" if name == "_C_cuda" else "SHIFTMLP_BUILD"


def missing(name: str) -> str | None:
    """What keeps library ``name`` from being built here."""
    cuda, torchless = name == "_C_cuda", name in ("_host", "_emulator")
    old = TORCH and tuple(map(int, metadata.version("torch").split(".")[:2])) < (2, 10)
    found = {
        "SHIFTMLP_BUILD=0": os.environ.get("SHIFTMLP_BUILD") != "0",
        "SHIFTMLP_CUDA=0": not cuda or os.environ.get("SHIFTMLP_CUDA") != "0",
        f"no compiler {CXX[0]}": shutil.which(CXX[0]),
        "no ninja": shutil.which("ninja"),
        "no pybind11": not torchless or util.find_spec("pybind11"),
        "no torch (once it is installed, use --no-build-isolation)": torchless or TORCH,
        "torch is older than 2.10": torchless or not old,
        "no nvcc (CUDA_HOME names its toolkit)": not cuda or CUDA_HOME,
    }
    return next((reason for reason, ok in found.items() if not ok), None)


class BuildNative(build_ext):
    """One ninja compiles every library; what fails is left out, unless its switch is 1."""

    def run(self):
        if not self.inplace and not self.editable_mode:
            self.extensions = [ext for ext in self.extensions if "_emulator" not in ext.name]
        Path("build").mkdir(exist_ok=True)
        with open("build/lock", "w") as lock:  # the system frees it even if we are killed
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().run()

    def get_ext_filename(self, fullname):
        path = super().get_ext_filename(fullname)
        return path.partition(".")[0] + ".so" if "_C_" in fullname else path

    def build_extensions(self):
        names = [ext.name.split(".")[1] for ext in self.extensions]
        reasons = {name: missing(name) for name in names}
        paths = {name: self.get_ext_fullpath(f"shiftmlp.{name}") for name in names}
        self.ninja({name: paths[name] for name in names if reasons[name] is None})
        for name in names:
            if reasons[name] is None and not Path(paths[name]).exists():
                reasons[name] = "its compilation failed, see above"
            if reasons[name] and os.environ.get(switch(name)) == "1":
                raise SystemExit(
                    f"shiftmlp: {name} is demanded by {switch(name)}=1: {reasons[name]}"
                )
        self.extensions = [ext for ext in self.extensions if not reasons[ext.name.split(".")[1]]]
        built = ", ".join(name for name in names if not reasons[name]) or "nothing"
        left_out = [f"; without {name}: {reason}" for name, reason in reasons.items() if reason]
        print(f"shiftmlp: built {built}{''.join(left_out)}")

    def ninja(self, targets):
        for path in targets.values():  # what an earlier build left would pass for a success
            Path(path).unlink(missing_ok=True)
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(build_ninja(targets, folder))
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
        if targets:
            subprocess.run(["ninja", "-k0", f"-f{folder}/build.ninja", *jobs])


setup(
    ext_modules=[Extension(f"shiftmlp.{name}", []) for name in NAMES],
    cmdclass={"build_ext": BuildNative},
)
