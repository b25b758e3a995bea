"""The product for sm_90a that ends in a norm's adjoint: cases, what they mean, and its results."""

from dataclasses import dataclass

import emulator
import torch
from emulator import fenced
from products import Side
from torch import Tensor
from torch.nn.functional import pad

ROWS = 64  # for which the kernel has sums of their own


@dataclass
class Case:
    """The gradients of rows @ columns before a norm of x: ``(N, K) @ (images, K, M)``."""

    rows: Tensor
    columns: Tensor
    x: Tensor
    mean: Tensor | None
    rstd: Tensor | None
    weight: Tensor | None
    sums: bool = True  # wanted: those of the weight and the bias

    def wanted(self, step=lambda v: v) -> list[Tensor]:
        """Of x, the weight and the bias, in float64; g is followed by ``step``."""
        g, z = step(self.rows.double() @ self.columns.double()), self.x.double()
        d = g if self.weight is None else g * self.weight.double()
        sums = []
        if self.mean is None:
            dx = d
        else:
            rstd = self.rstd.double()[..., None]
            z = (z - self.mean.double()[..., None]) * rstd
            dx = rstd * (d - d.mean(-1, True) - z * (d * z).mean(-1, True))
        if self.sums:
            sums = [(g * z).sum((0, 1)), g.sum((0, 1))]
        return [dx, *sums]

    def run(self, library, seed: int) -> list[Tensor]:
        """The kernel's, in x's dtype and in float32."""
        images, N, M = self.x.shape
        dx = fenced(torch.full((images, N, M), torch.nan, dtype=self.x.dtype))
        parts = images, -(-N // ROWS), M
        sums = [fenced(torch.full(parts, torch.nan)) for _ in range(2 * self.sums)]
        sides = (
            Side(*side).operand(library) for side in ((self.columns, True), (self.rows, False))
        )
        nothing = ("row_bias", "column_bias", "slope_of", "scale", "factor", "residual", "inner")
        result = library.Result(y=dx, activation="none", **dict.fromkeys(nothing))
        emulator.run(
            library.product_sm90_norm, seed, dx, *sides, result, images, self.x, self.mean,
            self.rstd, self.weight, *(sums or (None, None)),
        )  # fmt: skip
        assert all(map(emulator.fence_stands, sums)), f"seed {seed}: written outside of the sums"
        return [dx, *(each.sum((0, 1)) for each in sums)]


def case(
    M: int, N: int, K: int, images=1, norm="layer_norm", dtype=torch.bfloat16, **options
) -> Case:
    """Of small integers whose means over a row are not small: a part left out of them shows."""

    def integers(low, high, *shape):
        return torch.randint(low, high, shape).to(dtype)

    x = integers(-1, 4, images, N, M)
    rows, columns = integers(0, 2, N, K), integers(-1, 3, images, K, M)
    rows = pad(rows, (0, -K % 8), value=torch.nan)  # TMA wants rows at multiples of 16 bytes
    mean = rstd = None
    if norm == "layer_norm":
        of_rows = images, N
        mean, rstd = torch.randint(-2, 1, of_rows).float(), 2.0 ** torch.randint(-1, 2, of_rows)
    weight = torch.randint(1, 4, (M,)).to((torch.float32, dtype)[M % 16 // 8])
    tensors = (t if t is None else fenced(t) for t in (rows, columns, x, mean, rstd, weight))
    rows, *others = tensors
    return Case(rows[:, :K], *others, **options)


def check(library, seed: int, c: Case, told: str) -> None:
    """dx is rounded once, the sums of integers are exact."""
    dx, *sums = c.run(library, seed)
    wanted, *wanted_sums = c.wanted(lambda g: g.to(c.x.dtype).double())
    step = torch.finfo(dx.dtype).eps * 2.0 ** (torch.frexp(wanted).exponent - 1)
    noise = 2.0**-18 * wanted.abs().amax(-1, True)  # of float32's sums, of which not all are exact
    wrong = ((dx.double() - wanted).abs() > step / 2 + noise) | dx.isnan()
    assert not wrong.any(), f"{told}, seed {seed}: {wrong.sum()} of {dx.numel()} are wrong"
    for name, ours, exact in zip(("weight", "bias"), sums, wanted_sums, strict=False):
        assert torch.equal(ours.double(), exact), f"{told}, seed {seed}: wrong sums of the {name}"
