"""What a compiled kernel costs and does, read from its machine code; no GPU is needed.

The tools are cuobjdump and nvdisasm of the CUDA toolkit, or those that Triton's wheel brings.
"""

import functools
import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
THREADS = re.compile(
    r"^\.nv\.info\.(\S+)$(?:(?!^\.nv).)*?EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s+\S+\s+"
    r"Value:\s+(\w+) (\w+) (\w+)",
    re.MULTILINE | re.DOTALL,
)
SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)")
MATRIX = re.compile(r"\w*MMA(\.|$)")  # HFMA2.MMA is none: it names a pipe
GLOBAL = ("LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP")

AMD_FIELD = re.compile(r"^\s+\.(\w+):\s+(\d+)$", re.MULTILINE)
AMD_OPCODE = re.compile(r"^\s+((?:[sv]|buffer|global|flat|scratch|ds)_\w+)", re.MULTILINE)
AMD_GLOBAL = re.compile(r"(buffer|global|flat)_(load|store)_")


class Room(NamedTuple):
    """What the blocks of one multiprocessor share (CUDA programming guide, AMD CDNA 3 ISA)."""

    shared: int  # bytes
    reserved: int  # of which the system takes so many for each block
    threads: int
    blocks: int
    registers: int = 65536


ROOM = {
    "sm_80": Room(164 << 10, 1024, 2048, 32),
    "sm_86": Room(100 << 10, 1024, 1536, 16),
    "sm_89": Room(100 << 10, 1024, 1536, 24),
    "sm_90": Room(228 << 10, 1024, 2048, 32),
    "sm_90a": Room(228 << 10, 1024, 2048, 32),
    "sm_100": Room(228 << 10, 1024, 2048, 32),
    "sm_120": Room(100 << 10, 1024, 1536, 24),
    "gfx942": Room(64 << 10, 0, 2048, 32, registers=131072),
}
SHARED_LIMIT = {arch: room.shared - room.reserved for arch, room in ROOM.items()}  # of a block


@dataclass(frozen=True)
class MachineCode:
    """One kernel: registers of a thread, bytes of stack and shared memory, threads of a block, and
    what they execute."""

    kernel: str
    registers: int
    stack: int
    spills: int
    shared: int
    threads: int
    instructions: Counter = field(repr=False)
    matrix: dict[str, int]
    memory: dict[str, int]

    def resident(self, arch: str) -> int:
        """How many blocks a multiprocessor of ``arch`` holds at once."""
        room = ROOM[arch]
        registers = self.threads * math.ceil(self.registers / 8) * 8
        return min(
            room.registers // registers,
            room.shared // max(1, self.shared + room.reserved),
            room.threads // self.threads,
            room.blocks,
        )

    def occupancy(self, arch: str) -> float:
        """The part of a multiprocessor's threads that these blocks are."""
        return self.resident(arch) * self.threads / ROOM[arch].threads


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
    described = THREADS.findall(_run(find_tool("cuobjdump"), "-elf", cubin))
    threads = {name: math.prod(int(side, 16) for side in sides) for name, *sides in described}
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
                threads=threads[name],
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
        threads=told["max_flat_workgroup_size"],
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
