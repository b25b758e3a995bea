"""Writes the tables of README.md that are taken from the code and from result files.

Each stands between ``<!-- name -->`` and ``<!-- /name -->``. ``--check`` only says if one is stale.
"""

import re
import sys
from pathlib import Path

from shiftmlp import __version__
from shiftmlp._checks import DTYPES
from shiftmlp.ops import FORWARD
from shiftmlp.ops._op import PREFERENCE

ROOT = Path(__file__).parents[1]
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def dtypes_of(op, backend: str) -> str:
    if backend not in op.kernels:
        return "–"
    taken = op.dtypes[backend] or DTYPES
    told = " ".join(short for name, short in SHORT.items() if name in str(taken))
    # The CUDA products take float32 in TF32 alone.
    return told.replace("fp32", "tf32") if backend == "cuda" and op.weight is not None else told


def ops() -> str:
    """Which backend has a kernel of which op, for which dtypes."""
    rows = []
    for op in FORWARD:
        forward, backward = ([dtypes_of(o, name) for name in PREFERENCE] for o in (op, op.backward))
        if forward == backward:
            rows.append([f"`{op.name}`, forward and backward", *forward])
        else:
            rows += [[f"`{op.name}`", *forward], [f"`{op.name}`, backward", *backward]]
    return markdown(["op", *PREFERENCE], rows)


TABLES = {"ops": ops}


def main() -> int:
    path = ROOT / "README.md"
    before = text = path.read_text()
    for name, table in TABLES.items():
        block = f"<!-- {name} -->\n{table()}\n<!-- /{name} -->"
        text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.S)
    if "--check" in sys.argv:
        if text != before:
            print("README.md is stale: make pictures")
        return int(text != before)
    path.write_text(text)
    print(f"wrote {', '.join(TABLES)} of shiftmlp {__version__} into README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
