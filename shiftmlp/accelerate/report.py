"""What was replaced, by which backend, what was kept, and why."""

import json
from dataclasses import asdict, dataclass

from ._table import plain_table, print_table

REASONS = {
    "ALREADY_FUSED": "the block is one of shiftmlp.nn and calls the ops itself",
    "BACKEND_REFUSES": "the backend that was asked for cannot run one of the block's ops",
    "DEVICE": "the block's parameters are on several devices, or on meta",
    "DISABLED": "shiftmlp.disabled() or SHIFTMLP_DISABLE is in force",
    "DROPOUT_TRAINING": "the ops draw no dropout: in training the block's own forward runs",
    "DTYPE": "the block's parameters have no dtype that the ops take",
    "EXCLUDED": "the caller's include, exclude or semantics leaves the block out",
    "HOOKED_CHILD": "a layer inside has hooks, which a fused call would not fire",
    "INPLACE_SHIFT": "the block shifts in place, which smears instead of shifting",
    "LORA": "a linear layer is wrapped, so its product is more than its weight",
    "NOT_FASTER": "no kernel, or none that was measured to be faster, serves the block",
    "PARAMETRIZED": "a parameter is computed on access",
    "QUANTIZED": "a weight is not a plain tensor",
    "SHARDED_CHILD": "a parameter inside is a DTensor",
    "SUBCLASSED": "the class derives from a known block and may compute something else",
    "UNSUPPORTED_ACT": "the ops do not compute this activation",
    "UNSUPPORTED_LAYER": "a layer inside is not the one that the ops compute",
    "UNSUPPORTED_NORM": "the ops do not compute this norm",
    "VERIFY_FAILED": "the fused block did not match the original within the tolerance policy",
}


@dataclass(frozen=True)
class Row:
    """One block. ``reason`` is a key of REASONS or None; what is unknown is None.

    ``error`` and ``allowed`` are those of the tensor ``worst``, the largest share; ``gain`` is the
    original's time over the fused block's; ``kernels`` names the backend of every op called.
    """

    name: str
    found: str
    action: str
    backend: str | None = None
    reason: str | None = None
    sentence: str = ""
    error: float | None = None
    allowed: float | None = None
    worst: str | None = None
    gain: float | None = None
    kernels: dict[str, str] | None = None

    def cells(self) -> list[str]:
        error = "" if self.error is None else f"{self.error:.1e} of {self.allowed:.1e}"
        gain = "" if self.gain is None else f"{self.gain:.2f}x"
        return [
            self.name, self.found.rpartition(".")[2], self.action, self.backend or "", error, gain,
            self.reason or "",
        ]  # fmt: skip


HEADERS = ["block", "found", "action", "backend", "error of allowed", "gain", "reason"]


@dataclass(frozen=True)
class Report:
    """Rows of a dry run (``applied`` is False) or of a model's present state. Prints as a table."""

    model: str
    applied: bool
    rows: tuple[Row, ...]

    @property
    def replaced(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.action == "replaced")

    @property
    def kept(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.action == "kept")

    def to_dict(self) -> dict:
        return {
            "schema": "shiftmlp.report/1",
            "model": self.model,
            "applied": self.applied,
            "summary": self.summary(),
            "rows": [asdict(row) for row in self.rows],
        }

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def summary(self) -> str:
        if not self.rows:
            return f"{self.model}: nothing to replace, no block of a known family was found"
        verb = "replaced" if self.applied else "would be replaced"
        return f"{self.model}: {len(self.replaced)} of {len(self.rows)} blocks {verb}"

    def notes(self) -> list[str]:
        """Each sentence once, with the blocks it holds for."""
        blocks: dict[str, list[str]] = {}
        for row in self.rows:
            if row.sentence:
                code = f"{row.reason}: " if row.reason else ""
                blocks.setdefault(code + row.sentence, []).append(row.name)
        return [f"{_span(names)}: {sentence}" for sentence, names in blocks.items()]

    def show(self) -> None:
        """Print it, with colours on a terminal where rich is installed."""
        print_table(self.summary(), HEADERS, [row.cells() for row in self.rows], self.notes())

    def __str__(self) -> str:
        return plain_table(
            self.summary(), HEADERS, [row.cells() for row in self.rows], self.notes()
        )


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)})"
