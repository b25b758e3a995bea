"""``Shift``: one value that describes every spatial shift of the vision-MLP literature."""

import functools
from dataclasses import dataclass
from typing import ClassVar

BORDERS = ("keep", "zero", "wrap")
SPLITS = ("floor", "chunk", "cycle", "fold", "cycle_fold")


@dataclass(frozen=True)
class Shift:
    """Which way each channel of a (..., H, W, C) map moves, and what enters at the border.

    ``y[h, w, c] = x[h - dy, w - dx, c]`` with ``(dy, dx) = steps[group(c)]``.

    Args:
        steps: ``((dy, dx), ...)``: content moves ``dy`` rows down and ``dx`` columns right;
            ``(0, 0)`` stays.
        border: what a pixel gets that has no neighbour to take from: "keep" its own value (for
            any step; for steps of 1 this is replicate padding), "zero", or "wrap" around.
        split: how C channels are dealt to the n steps. "floor": step g takes the channels from
            ``g * C // n`` up to ``(g + 1) * C // n``. "chunk": ``ceil(C / n)`` each, the last gets
            what is left (``torch.chunk``). "cycle": channel c takes step ``c % n``. "fold" and
            "cycle_fold": ``C // n`` each, in blocks or in turn, and the ``C % n`` left over stay.

    Raises:
        ValueError, TypeError: a bad border, split or step, when the value is made.

    Values are immutable, hashable and picklable. Every operator takes the first spatial axis as H.
    """

    S2: ClassVar["Shift"]
    S2_SWAPPED: ClassVar["Shift"]

    steps: tuple[tuple[int, int], ...]
    border: str = "keep"
    split: str = "floor"

    def __post_init__(self):
        if self.border not in BORDERS:
            raise ValueError(f"border must be one of {BORDERS}, got {self.border!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")
        try:
            steps = tuple((_int(dy), _int(dx)) for dy, dx in self.steps)
        except (TypeError, ValueError):
            raise TypeError(f"steps must be pairs of ints (dy, dx), got {self.steps!r}") from None
        if not steps:
            raise ValueError("steps must hold at least one (dy, dx), got none")
        if any(abs(step) >= 2**31 for pair in steps for step in pair):
            raise ValueError(f"steps must fit 32 bits, got {steps}")
        object.__setattr__(self, "steps", steps)
        moves = " ".join(f"{dy},{dx}" for dy, dx in steps)
        object.__setattr__(self, "spec", f"{self.border} {self.split} {moves}")

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def from_spec(spec: str) -> "Shift":
        """The inverse of ``shift.spec``, the one-line form in which ops carry a shift."""
        border, split, *moves = spec.split()
        return Shift(tuple(tuple(map(int, move.split(","))) for move in moves), border, split)

    @staticmethod
    def axial(size: int, axis: str) -> "Shift":
        """AS-MLP (arXiv 2107.08391) and UNeXt: ``size`` chunks, moved by -size//2 ... +size//2."""
        _require(size >= 1 and size % 2 == 1, "size must be odd", size)
        return Shift(_along(axis, range(-(size // 2), size - size // 2)), "zero", "chunk")

    @staticmethod
    def cycle(kernel: int, axis: str) -> "Shift":
        """CycleFC (arXiv 2107.10224): channel c reads from ``(c + k//2) % k - k//2`` further on."""
        _require(kernel >= 1 and kernel % 2 == 1, "kernel must be odd", kernel)
        half = kernel // 2
        reads = [(c + half) % kernel - half for c in range(kernel)]
        return Shift(_along(axis, [-read for read in reads]), "zero", "cycle")

    @staticmethod
    def temporal(fold: int = 8) -> "Shift":
        """TSM (arXiv 1811.08383) on (B, T, pixels, C): 1/fold of C from t+1, 1/fold from t-1."""
        _require(fold >= 2, "fold must be at least 2", fold)
        return Shift(((-1, 0), (1, 0)) + ((0, 0),) * (fold - 2), "zero", "fold")

    @staticmethod
    def partial(fold: int = 12) -> "Shift":
        """ShiftViT (arXiv 2201.10801): 1/fold of C each left, right, up, down; the rest stays."""
        _require(fold >= 4, "fold must be at least 4", fold)
        moves = ((0, -1), (0, 1), (-1, 0), (1, 0))
        return Shift(moves + ((0, 0),) * (fold - 4), "zero", "fold")

    @staticmethod
    def grid(kernel: int = 3, dilation: int = 1) -> "Shift":
        """ShiftNet (arXiv 1711.08141): channels dealt in turn to every cell of a kernel window."""
        _require(kernel >= 1 and kernel % 2 == 1, "kernel must be odd", kernel)
        _require(dilation >= 1, "dilation must be at least 1", dilation)
        half = kernel // 2
        cells = [divmod(cell, kernel) for cell in range(kernel * kernel)]
        steps = [(dilation * (half - row), dilation * (half - column)) for row, column in cells]
        return Shift(tuple(steps), "zero", "cycle_fold")

    def step(self, c: int, C: int) -> tuple[int, int]:
        """The step of channel ``c`` of ``C``: the one definition that every kernel restates."""
        n = len(self.steps)
        width = C // n
        if self.split == "floor":
            return self.steps[((c + 1) * n - 1) // C]
        if self.split == "chunk":
            return self.steps[c // -(-C // n)]
        if self.split == "cycle":
            return self.steps[c % n]
        if c >= n * width:
            return (0, 0)
        return self.steps[c // width if self.split == "fold" else c % n]

    @functools.lru_cache(maxsize=1024)  # noqa: B019
    def runs(self, C: int) -> tuple[tuple[int, int, int, int], ...]:
        """``(begin, end, dy, dx)`` for each longest run of channels that move alike."""
        runs: list[tuple[int, int, int, int]] = []
        for c in range(C):
            dy, dx = self.step(c, C)
            begin = runs.pop()[0] if runs and runs[-1][2:] == (dy, dx) else c
            runs.append((begin, c + 1, dy, dx))
        return tuple(runs)


def _int(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _require(holds: bool, wanted: str, got: int) -> None:
    if not holds:
        raise ValueError(f"{wanted}, got {got}")


def _along(axis: str, moves) -> tuple[tuple[int, int], ...]:
    if axis not in ("h", "w"):
        raise ValueError(f"axis must be 'h' or 'w', got {axis!r}")
    return tuple((move, 0) if axis == "h" else (0, move) for move in moves)


# S2-MLP, arXiv 2106.07477: four quarters move one pixel down, up, right, left.
Shift.S2 = Shift(((1, 0), (-1, 0), (0, 1), (0, -1)))
# The second branch of S2-MLPv2, arXiv 2108.01072: the same with the axes exchanged.
Shift.S2_SWAPPED = Shift(((0, 1), (0, -1), (1, 0), (-1, 0)))
