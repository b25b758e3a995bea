"""The bench file, its table, and the comparison of two of them.

A file is JSON: ``schema``, ``environment``, ``rows``, and ``left_out``, which says what was not
measured and why. It is replaced as a whole after every case, so it is valid whenever a run ends.
"""

import json
import os
import tempfile
from pathlib import Path

SCHEMA = "shiftmlp-bench/1"
KEY = ("op", "case", "batch", "dtype", "direction", "threads", "contender")


class BenchFile:
    """Rows in memory, and on disk if there is a path."""

    def __init__(self, path: Path | None, environment: dict):
        self.path = None if path is None else Path(path)
        self.rows: list[dict] = []
        self.left_out: list[str] = []
        self.failed = False  # one of our kernels raised something other than its refusal
        self.environment = environment
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def add(self, rows: list[dict], left_out: list[str], failed: bool = False) -> None:
        self.rows += rows
        self.left_out += left_out
        self.failed |= failed
        if self.path is not None:
            self._write()

    def _write(self) -> None:
        document = {
            "schema": SCHEMA,
            "environment": self.environment,
            "rows": self.rows,
            "left_out": self.left_out,
        }
        write_atomically(self.path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path) -> dict:
    """A bench file's document; ValueError if it is something else."""
    try:
        document = json.loads(Path(path).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be a bench file, got no JSON: {error}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} must have schema {SCHEMA!r}, got {schema!r}")
    environment = document["environment"]
    for row in document["rows"]:  # older files say it once for all
        row.setdefault("threads", None if "cuda" in environment else environment.get("threads"))
    return document


def header(environment: dict) -> str:
    return "\n".join(f"{name}: {value}" for name, value in environment.items())


COLUMNS = (
    "", "time us", "20..80 %", "TFLOP/s", "of peak", "GB/s", "of floor", "error", "kept MiB",
    "times as fast as",
)  # fmt: skip


def case_table(rows: list[dict]) -> str:
    """The rows of one case under a line that names it."""
    first = rows[0]
    title = f"{first['op']} {first['case']}, batch {first['batch']}, {first['dtype']}, "
    threads = f"{first['threads']} threads" if first["threads"] else "timed"
    title += f"{first['direction']}, {threads} by {first['clock']}, "
    title += f"floor {first['floor_us']:.1f} us, peak {first['peak_tflops']:.3g} TFLOP/s"
    remarks = [f"  {first['remark']}"] * bool(first["remark"])
    return "\n".join([title, *_aligned([COLUMNS, *map(_cells, rows)]), *remarks])


def _cells(row: dict) -> tuple[str, ...]:
    if row["time_us"] is None:
        return (
            row["contender"],
            *[""] * (len(COLUMNS) - 2),
            f"{row['mark'].upper()}: {row['reason']}",
        )
    low, high = row["spread_us"]
    return (
        row["contender"],
        f"{row['time_us']:.1f}",
        f"{low:.1f}..{high:.1f}",
        f"{row['tflops']:.3g}",
        f"{row['share_of_peak']:.0%}" if row["tflops"] else "-",
        f"{row['gbs']:.4g}",
        f"{row['share_of_floor']:.0%}",
        "-" if row["error_ratio"] is None else f"{row['error_ratio']:.2f}",
        "-" if row["kept_bytes"] is None else f"{row['kept_bytes'] / 2**20:.2f}",
        _ratios(row) if row["mark"] is None else row["mark"].upper(),
    )


def _ratios(row: dict) -> str:
    ratios = row["ratios"]
    told = [f"best ({row['best']}) {ratios[row['best']]:.2f}x"] if row["best"] else []
    return " ".join([*told, *(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())])


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return ["  " + "  ".join(cells).rstrip() for cells in padded]


def compare(before: dict, after: dict) -> list[dict]:
    """For every row in both files, how many times as fast it is ``after``; marked rows are 0."""
    then = {_key(row): row for row in before["rows"]}
    return [
        {
            **{name: row[name] for name in KEY},
            "ours": row["ours"],
            "before_us": then[_key(row)]["time_us"],
            "after_us": row["time_us"],
            "speed": 0.0 if row["mark"] else then[_key(row)]["time_us"] / row["time_us"],
        }
        for row in after["rows"]
        if _key(row) in then and not then[_key(row)]["mark"] and row["time_us"]
    ]


def _key(row: dict) -> tuple:
    return tuple(row.get(name) for name in KEY)  # predictions have no threads, as GPU rows


def comparison_table(rows: list[dict]) -> str:
    lines = [(*KEY, "before us", "after us", "speed")]
    for row in rows:
        times = (f"{row['before_us']:.1f}", f"{row['after_us']:.1f}", f"{row['speed']:.2f}x")
        lines.append((*(str(row[name]) for name in KEY), *times))
    return "\n".join(_aligned(lines))
