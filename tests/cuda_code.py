"""The machine code of every kernel in _C_cuda, and how many instructions each had when it was last
looked at: ``python tests/cuda_code.py`` writes that down."""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from machine_code import MachineCode, find_tool, read_cubin  # noqa: E402

LIBRARY = ROOT / "shiftmlp/_C_cuda.so"
RECORD = Path(__file__).with_name("cuda_instructions.json")


def read_library() -> dict[str, dict[str, MachineCode]]:
    """Kernels by their names, by architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [find_tool("cuobjdump"), "-xelf", "all", LIBRARY]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        cubins = sorted(Path(folder).glob("*.cubin"))
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(read_cubin, cubins))
    kernels = {}
    for cubin, code in zip(cubins, found, strict=True):
        arch = cubin.suffixes[-2].removeprefix(".")
        kernels.setdefault(arch, {}).update({kernel.kernel: kernel for kernel in code})
    return kernels


def compiler() -> str:
    """nvcc's version."""
    told = subprocess.run([find_tool("nvcc"), "--version"], capture_output=True, text=True)
    return told.stdout.partition("release ")[2].partition(",")[0]


def main() -> None:
    counts = {
        arch: {name: code.instructions.total() for name, code in sorted(kernels.items())}
        for arch, kernels in sorted(read_library().items())
    }
    RECORD.write_text(json.dumps({"nvcc": compiler(), "instructions": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
