"""Counts what a warp issues in the loops of the CUDA kernels, from their machine code.

    python benchmarks/issue.py

writes issued.json, which cuda_model.py reads. A kernel has branches for every dtype, activation and
option, so a region is a loop and what a call has of it: of all ways through the loop, that with the
most of the instructions that the region asks for, and of those the shortest. A loop inside counts
once, or not at all where it is a region of its own.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine_code import SECTION, _readable, _run, find_tool  # noqa: E402
from regions import REGIONS, Region  # noqa: E402

LIBRARY = ROOT / "shiftmlp/_C_cuda.so"
RECORD = Path(__file__).with_name("issued.json")
LINE = re.compile(r"^(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ )?([A-Z][\w.]*)([^;]*)", re.M)
TARGET = re.compile(r"\.L_x_\d+")
COUNTED = {"fp32": ("FFMA", "FADD", "FMUL"), "mufu": ("MUFU",), "mma": ("HMMA", "HGMMA")}


@dataclass
class Block:
    """Instructions that are all executed or none, and the blocks that may come next."""

    opcodes: list[str] = field(default_factory=list)
    following: list[int] = field(default_factory=list)


def blocks_of(code: str) -> list[Block]:
    """The first one is the kernel's."""
    blocks, labels, jumps = [Block()], {}, {}
    for label, predicate, opcode, operands in LINE.findall(code):
        if label:
            if blocks[-1].opcodes:
                blocks.append(Block())
            labels[label] = len(blocks) - 1
            continue
        blocks[-1].opcodes.append(opcode)
        kind = opcode.partition(".")[0]
        # A call of a label is a jump; of a function, the way through that does not count.
        if kind in ("BRA", "BRX", "EXIT", "RET") or (kind == "CALL" and TARGET.search(operands)):
            conditional = predicate or (kind == "BRA" and not operands.lstrip().startswith("`"))
            jumps[len(blocks) - 1] = TARGET.findall(operands), conditional
            blocks.append(Block())
    for i, block in enumerate(blocks):
        targets, falls_through = jumps.get(i, ([], True))
        block.following = [labels[target] for target in targets]
        block.following += [i + 1] * (falls_through and i + 1 < len(blocks))
    return blocks


@dataclass
class Loop:
    first: int
    body: set[int]  # of blocks
    last: set[int]


def loops_of(blocks: list[Block]) -> list[Loop]:
    """The innermost first."""
    before, loops, state = {}, {}, {}
    stack = [(0, iter(blocks[0].following))]
    while stack:
        at, rest = stack[-1]
        state[at] = "open"
        for to in rest:
            before.setdefault(to, set()).add(at)
            if to not in state:
                stack.append((to, iter(blocks[to].following)))
                break
            if state[to] == "open":
                loops.setdefault(to, set()).add(at)
        else:
            state[at] = "done"
            stack.pop()
    found = []
    for first, last in loops.items():
        body, reached = {first}, list(last)
        while reached:
            at = reached.pop()
            if at not in body:
                body.add(at)
                reached += before[at]
        found.append(Loop(first, body, last))
    return sorted(found, key=lambda loop: sum(len(blocks[i].opcodes) for i in loop.body))


def way(blocks: list[Block], loops: list[Loop], region: Region) -> Counter | None:
    """What is executed on it; None where there is no such loop."""

    def holds(loop: Loop, name: str) -> bool:
        return any(opcode.startswith(name) for i in loop.body for opcode in blocks[i].opcodes)

    fit = [
        loop for loop in loops
        if all(holds(loop, name) for name in region.has.split())
        and not any(holds(loop, name) for name in region.lacks.split())
    ]  # fmt: skip
    if not fit:
        return None
    loop = fit[-1 if region.outermost else 0]
    back = {(last, one.first) for one in loops for last in one.last}
    apart, inside = set(), set()
    for inner in loops:
        if inner.body < loop.body:
            inside |= inner.body
            if any(holds(inner, name) for name in region.apart.split(",")):
                apart |= inner.body

    def weight(at: int) -> int:
        weights = region.weights | (region.inside if at in inside else {})
        found = 0
        for opcode in blocks[at].opcodes:
            fitting = [name for name in weights if opcode.startswith(name)]
            found += weights[max(fitting, key=len)] if fitting else 0
        return found

    @functools.cache
    def best(at: int) -> tuple[int, int, Counter] | None:
        following = [best(to) for to in blocks[at].following if (at, to) not in back | outside]
        ways = [one for one in following if one]
        ways += [(0, 0, Counter())] * (at in loop.last)
        if not ways:
            return None
        total, shortness, executed = max(ways, key=lambda one: one[:2])
        if at in apart:
            return total, shortness, executed
        own = blocks[at].opcodes
        return total + weight(at), shortness - len(own), executed + Counter(own)

    outside = {(at, to) for at in loop.body for to in blocks[at].following if to not in loop.body}
    return best(loop.first)[2]


def count(executed: Counter) -> dict[str, int]:
    """Of all instructions, and of those of each pipe."""
    kinds = {kind: 0 for kind in COUNTED}
    for opcode, n in executed.items():
        for kind, names in COUNTED.items():
            kinds[kind] += n * (opcode.partition(".")[0] in names)
    return {"issued": executed.total()} | kinds


def read_cubin(cubin: Path) -> dict[str, dict]:
    """The regions of every kernel, by its name."""
    _, *parts = SECTION.split(_run(find_tool("nvdisasm"), "-c", cubin))
    found = {}
    for mangled, code in zip(parts[::2], parts[1::2], strict=True):
        name = _readable(mangled)
        for prefix, regions in REGIONS.items():
            if name.startswith(prefix):
                blocks = blocks_of(code)
                loops = loops_of(blocks)
                ways = {region: way(blocks, loops, of) for region, of in regions.items()}
                found[name] = {region: count(w) for region, w in ways.items() if w}
    return found


def read_library() -> dict[str, dict]:
    """The same of the library, for the GPUs that are modelled."""
    with tempfile.TemporaryDirectory() as folder:
        command = [find_tool("cuobjdump"), "-xelf", "all", LIBRARY]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return {
            arch: dict(sorted(pair for cubin in Path(folder).glob(f"*.{arch}.cubin")
                              for pair in read_cubin(cubin).items()))
            for arch in ("sm_80", "sm_90a")
        }  # fmt: skip


def main() -> None:
    archs = []
    for arch, kernels in read_library().items():
        lines = (f"{json.dumps(name)}: {json.dumps(counts)}" for name, counts in kernels.items())
        archs.append(f"{json.dumps(arch)}: {{\n" + ",\n".join(lines) + "\n}")
    RECORD.write_text("{\n" + ",\n".join(archs) + "\n}\n")


if __name__ == "__main__":
    main()
