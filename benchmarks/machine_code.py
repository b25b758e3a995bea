"""What a compiled kernel costs and does, read from its machine code; no GPU is needed.

The tools are cuobjdump and nvdisasm of the CUDA toolkit, or those that Triton's wheel brings.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)")
MATRIX = re.compile(r"\w*MMA(\.|$)")  # HFMA2.MMA is none: it names a pipe
GLOBAL = ("LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP")

AMD_FIELD = re.compile(r"^\s+\.(\w+):\s+(\d+)$", re.MULTILINE)
AMD_OPCODE = re.compile(r"^\s+((?:[sv]|buffer|global|flat|scratch|ds)_\w+)", re.MULTILINE)
AMD_GLOBAL = re.compile(r"(buffer|global|flat)_(load|store)_")

# Bytes of shared memory that one block can have (CUDA programming guide, AMD CDNA 3 ISA).
SHARED_LIMIT = {
    "sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_90a": 232448,
    "sm_100": 232448, "sm_120": 101376, "gfx942": 65536,
}  # fmt: skip


@dataclass(frozen=True)
class MachineCode:
    """One kernel: registers of a thread, bytes of stack and shared memory, what it executes."""

    kernel: str
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: Counter = field(repr=False)
    matrix: dict[str, int]
    memory: dict[str, int]


def read_cubin(cubin: bytes | Path, dynamic_shared: int = 0) -> list[MachineCode]:
    """The kernels of a cubin, in the order of their names."""
    if isinstance(cubin, bytes):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            return read_cubin(Path(file.name), dynamic_shared)
    _, *parts = SECTION.split(_run(find_tool("nvdisasm"), "-c", cubin))
    code = dict(zip(parts[::2], parts[1::2], strict=True))
    usage = USAGE.findall(_run(find_tool("cuobjdump"), "-res-usage", cubin))
    kernels = []
    for name, registers, stack, shared in sorted(usage):
        found = Counter(OPCODE.findall(code[name]))
        del found["NOP"]  # padding behind the last instruction
        kernels.append(
            MachineCode(
                kernel=_readable(name),
                registers=int(registers),
                stack=int(stack),
                # The tools' own LOCAL is 0 even in kernels full of spills.
                spills=sum(_only(found, ("STL", "LDL")).values()),
                shared=int(shared) + dynamic_shared,
                instructions=found,
                matrix={name: n for name, n in sorted(found.items()) if MATRIX.match(name)},
                memory=_only(found, GLOBAL),
            )
        )
    return kernels


def read_amdgcn(kernel: str, assembly: str) -> MachineCode:
    """The same of a kernel in AMD's assembly, as far as its metadata tells."""
    told = {name: int(value) for name, value in AMD_FIELD.findall(assembly)}
    found = Counter(AMD_OPCODE.findall(assembly))
    return MachineCode(
        kernel=kernel,
        registers=told["vgpr_count"],
        stack=told["private_segment_fixed_size"],
        spills=told["vgpr_spill_count"] + told["sgpr_spill_count"],
        shared=told["group_segment_fixed_size"],
        instructions=found,
        matrix={name: n for name, n in sorted(found.items()) if "mfma" in name},
        memory={name: n for name, n in sorted(found.items()) if AMD_GLOBAL.match(name)},
    )


@functools.cache
def find_tool(name: str) -> str:
    """The path of nvcc, cuobjdump or nvdisasm: from PATH, CUDA_HOME or Triton's wheel."""
    places = [os.environ.get("PATH", "")]
    if home := os.environ.get("CUDA_HOME"):
        places.append(os.path.join(home, "bin"))
    if triton := importlib.util.find_spec("triton"):
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    for place in places:
        if path := shutil.which(name, path=place):
            return path
    raise FileNotFoundError(f"{name} is neither on PATH nor in CUDA_HOME/bin nor in Triton's wheel")


def _only(found: Counter, names: tuple[str, ...]) -> dict[str, int]:
    return {name: n for name, n in sorted(found.items()) if name.split(".")[0] in names}


def _readable(name: str) -> str:
    if not (name.startswith("_Z") and shutil.which("c++filt")):
        return name
    return re.sub(r"[\w:]+::|\(anonymous namespace\)::", "", _run("c++filt", "-p", name).strip())


def _run(*command) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr or done.stdout}")
    return done.stdout
