"""Draws docs/shift.png: the spatial shift beside what the in-place code of the ports computes."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from shiftmlp import functional as SF

SIDE = 6
ARROWS = {"down": (0, 1), "up": (0, -1), "right": (1, 0), "left": (-1, 0)}
INK, PAPER, RED = "#22303c", "white", "#e5352b"


def in_place(x: Tensor) -> Tensor:
    """The published one-liners, for the picture: assignments between overlapping views of x."""
    x = x.clone()
    down, up, right, left = x.split(1, dim=-1)
    down[:, 1:] = down[:, :-1]
    up[:, :-1] = up[:, 1:]
    right[:, :, 1:] = right[:, :, :-1]
    left[:, :, :-1] = left[:, :, 1:]
    return x


def draw_map(axis, values: Tensor, wanted: Tensor | None) -> None:
    """One channel as numbers; what is not as wanted stands in a red frame."""
    axis.imshow(values, cmap="viridis", vmin=0, vmax=SIDE * SIDE - 1)
    axis.set(xticks=[], yticks=[])
    wrong = torch.zeros_like(values, dtype=bool) if wanted is None else values != wanted
    for h in range(SIDE):
        for w in range(SIDE):
            value = values[h, w].item()
            colour = INK if value > 0.6 * SIDE * SIDE else PAPER
            axis.text(w, h, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
            if wrong[h, w]:
                corner = w - 0.46, h - 0.46
                axis.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=RED, lw=1.5))
    if wanted is not None:
        share = wrong.float().mean().item()
        axis.set_xlabel(f"{share:.0%} wrong" if share else "right", fontsize=9,
                        color=RED if share else INK)  # fmt: skip


def draw(path: Path) -> None:
    # One channel a group; each pixel's value is its number, so that a colour tells where it was.
    pixels = torch.arange(SIDE * SIDE, dtype=torch.float32).view(1, SIDE, SIDE, 1)
    x = pixels.expand(1, SIDE, SIDE, 4).contiguous()
    rows = {
        "x": x,
        "spatial_shift(x)": SF.spatial_shift(x),
        "in place, on the CPU": in_place(x),
    }
    shifted = rows["spatial_shift(x)"]
    figure, axes = plt.subplots(3, 4, figsize=(8.4, 6.9), facecolor=PAPER)
    for row, (title, values) in enumerate(rows.items()):
        axes[row, 0].set_ylabel(title, fontsize=11, color=INK)
        for group, (name, arrow) in enumerate(ARROWS.items()):
            axis, wanted = axes[row, group], shifted[0, ..., group]
            draw_map(axis, values[0, ..., group], wanted if row else None)
            if row == 0:
                axis.set_title(f"quarter {group + 1}: {name}", fontsize=10, color=INK)
                tail, head = ((2.5 - s * arrow[0], 2.5 - s * arrow[1]) for s in (1, -1))
                style = {"arrowstyle": "-|>", "lw": 4, "color": RED, "mutation_scale": 22}
                axis.annotate("", xytext=tail, xy=head, arrowprops=style)
    figure.tight_layout()
    # No version of the drawing program in the file: the same picture is the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    path = Path(__file__).with_name("shift.png")
    draw(path)
    print(f"drew {re.sub('.*/docs', 'docs', str(path))}")
