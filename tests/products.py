"""Products of every layout with every option, what they mean, and the kernel's result."""

from dataclasses import dataclass, fields, replace

import emulator
import tf32
import torch
from emulator import fenced
from torch import Tensor
from torch.nn import functional as F

from shiftmlp import Shift
from shiftmlp.ops.spatial_shift.reference import shift_map

ACTIVATIONS = {
    "none": lambda v: v,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": F.relu,
}


GRID = 5, 7


def shifted(v: Tensor, shift: Shift, grid: tuple[int, int]) -> Tensor:
    return shift_map(v.unflatten(-2, (-1, *grid)), shift).flatten(-4, -2)


@dataclass
class Side:
    """One operand: x is (images, rows, columns), or (rows, columns) for all images."""

    x: Tensor
    sums_rows: bool
    shift: Shift | None = None
    grid: tuple[int, int] = (0, 0)
    mean: Tensor | None = None
    rstd: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    factor: Tensor | None = None

    def elements(self, step) -> Tensor:
        """(..., result's columns or rows, terms), each operation followed by ``step``."""
        v = self.x.double()
        if self.shift:
            v = shifted(v, self.shift, self.grid)
        if self.mean is not None:
            v = (v - self.mean.double()[..., None]) * self.rstd.double()[..., None]
        if self.weight is not None:
            v = v * self.weight.double()
        if self.bias is not None:
            v = v + self.bias.double()
        v = step(v)
        if self.factor is not None:
            v = step(v * self.factor.double())
        return v.mT if self.sums_rows else v

    def operand(self, library):
        """For as long as its tensors live."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return library.Operand(**given | {"shift": emulator.spec_of(self.shift)})


@dataclass
class Case:
    columns: Side
    rows: Side
    images: int
    row_bias: Tensor | None = None
    column_bias: Tensor | None = None
    activation: str = "none"
    slope_of: Tensor | None = None
    scale: Tensor | None = None
    factor: Tensor | None = None
    residual: Tensor | None = None
    dtype: torch.dtype | None = None  # of the result, where it is not the operands'
    splits: int = 0
    pitch: int = 0  # elements between the result's rows
    misaligned: int = 0  # elements by which the result is
    inner: bool = False  # what enters the activation is wanted too: images before the result's
    moves: Shift | None = None  # of the result, on maps of 5 by 7 pixels

    def reference(self, step=lambda v: v, multiplied=lambda v: v) -> Tensor:
        y = multiplied(self.rows.elements(step)) @ multiplied(self.columns.elements(step)).mT
        if self.splits:
            return (y if y.dim() == 2 else y.sum(0)).expand(1, -1, -1)
        y = y.expand(self.images, -1, -1)
        if self.row_bias is not None:
            y = y + self.row_bias.double()[:, None]
        if self.column_bias is not None:
            y = y + self.column_bias.double()
        inner = y = step(y)
        if self.slope_of is not None:
            at = self.slope_of.double().requires_grad_()
            with torch.enable_grad():
                y = step(torch.autograd.grad(ACTIVATIONS[self.activation](at), at, y)[0])
        else:
            y = step(ACTIVATIONS[self.activation](y))
        for value in (self.scale, self.factor):
            if value is not None:
                y = step(y * value.double())
        y = y if self.residual is None else y + self.residual.double()
        y = y if self.moves is None else shifted(y, self.moves, GRID)
        return torch.cat([inner, y]) if self.inner else y

    def wanted(self, step=lambda v: v) -> Tensor:
        """The reference in the result's dtype, of float32 through TF32."""
        is_single = self.columns.x.dtype == torch.float32
        to_tf32 = [lambda v: tf32.rounded(v.float()).double()] * is_single
        return self.reference(step, *to_tf32).to(self.result_dtype)

    @property
    def result_dtype(self):
        return torch.float32 if self.splits else self.dtype or self.columns.x.dtype

    def run(self, library, seed: int, sm90: bool = False) -> Tensor:
        """The kernel's result, or that of sm_90a; the parts of a split one added up."""
        _, N, M = dims(self)
        dtype = self.result_dtype
        shape = (1 + self.inner, self.splits or self.images, N, M + self.pitch)
        whole = fenced(torch.full(shape, torch.nan, dtype=dtype), self.misaligned)
        inner, y = whole[0, ..., :M], whole[-1, ..., :M]
        result = library.Result(
            y=y, row_bias=self.row_bias, column_bias=self.column_bias, activation=self.activation,
            slope_of=self.slope_of, scale=self.scale, factor=self.factor, residual=self.residual,
            inner=inner if self.inner else None,
        )  # fmt: skip
        sides = self.columns.operand(library), self.rows.operand(library)
        args = *sides, result, self.images, self.splits
        if sm90:
            args += emulator.spec_of(self.moves), GRID
        emulator.run(library.product_sm90 if sm90 else library.product, seed, whole, *args)
        assert whole[..., M:].isnan().all(), f"seed {seed}: written between the rows of y"
        return y.sum(0, keepdim=True) if self.splits else whole[..., :M].flatten(0, 1)


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


def one_of(*values):
    return lambda *shape: torch.tensor(values)[torch.randint(len(values), shape)].float()


# Whether the columns and the rows sum their rows, and which of them all images share.
LAYOUTS = {
    "token": (True, False, "rows"),
    "token dx": (True, True, "rows"),
    "token dw": (False, False, ""),
    "channel": (False, False, "columns"),
    "channel dx": (True, False, "columns"),
    "channel dw": (True, True, ""),
}


def side(make, dtype, images, size, K, sums_rows, is_shared) -> Side:
    shape = (K, size) if sums_rows else (size, K)
    x = make(*shape) if is_shared else make(images, *shape)
    return Side(fenced(x.to(dtype)), sums_rows)


def case(layout, M, N, K, images=1, dtype=torch.bfloat16, make=integers) -> Case:
    columns, rows, shared = LAYOUTS[layout]
    return Case(
        side(make, dtype, images, M, K, columns, shared == "columns"),
        side(make, dtype, images, N, K, rows, shared == "rows"),
        images,
    )


def normed(s: Side, make, norm: str) -> Side:
    """With integers if ``make`` gives such: one over the deviation is a power of two."""
    *rows, C = s.x.shape
    mean, rstd, weight, bias = make(*rows), one_of(0.5, 1, 2)(*rows), make(C), make(C)
    if make is not integers:
        rstd = rstd + torch.rand_like(rstd)
    if norm == "affine" or s.x.dim() == 2:  # statistics are of each image's rows
        mean = rstd = None
    if norm == "bare":
        weight = bias = None
    if norm == "scaling":
        mean = rstd = bias = None
    values = {"mean": mean, "rstd": rstd, "weight": weight, "bias": bias}
    return replace(s, **{k: v if v is None else fenced(v) for k, v in values.items()})


def moved(s: Side, shift: Shift) -> Side:
    """On maps of 5 by 7 pixels."""
    return replace(s, shift=shift, grid=GRID)


# Each makes an operand another one.
OPERAND_OPTIONS = {
    "norm": lambda s, make: normed(s, make, "layer_norm"),
    "affine": lambda s, make: normed(s, make, "affine"),
    "bare norm": lambda s, make: normed(s, make, "bare"),
    "scaling": lambda s, make: normed(s, make, "scaling"),
    "factor": lambda s, make: replace(s, factor=fenced(make(*s.x.shape).to(s.x.dtype))),
    "all": lambda s, make: replace(
        normed(s, make, "layer_norm"),
        factor=fenced(make(*s.x.shape).clamp(-1, 1).to(s.x.dtype), shift=1),
    ),
    "misaligned": lambda s, make: replace(s, x=fenced(s.x, shift=1)),
    "aligned to 4 bytes": lambda s, make: replace(s, x=fenced(s.x, shift=2)),
    "strided": lambda s, make: replace(s, x=strided(s.x)),
    "strided by 8 bytes": lambda s, make: replace(s, x=strided(s.x, 2)),
}
FRACTIONS = {"fractions": lambda s, make: replace(s, x=fenced(tf32.fractions(*s.x.shape)))}


def strided(t: Tensor, by: int = 8) -> Tensor:
    """A copy of t with NaNs between its rows and twice as many of them."""
    wide = t.new_full((*t.shape[:-2], 2 * t.shape[-2], t.shape[-1] + by), torch.nan)
    return fenced(wide)[..., ::2, : t.shape[-1]].copy_(t)


def dims(c: Case) -> tuple[int, int, int]:
    M = c.columns.x.shape[-1 if c.columns.sums_rows else -2]
    N = c.rows.x.shape[-1 if c.rows.sums_rows else -2]
    return c.images, N, M


def like_result(c: Case, make, **options) -> Tensor:
    return fenced(make(*dims(c)).to(c.columns.x.dtype), **options)


RESULT_OPTIONS = {
    "row bias": lambda c, make: replace(c, row_bias=fenced(make(dims(c)[1]).to(c.columns.x.dtype))),
    "column bias": lambda c, make: replace(c, column_bias=fenced(make(dims(c)[2]))),
    "result's relu": lambda c, make: replace(c, activation="relu"),
    "inner": lambda c, make: replace(c, activation="relu", inner=True),
    "slope of relu": lambda c, make: replace(c, activation="relu", slope_of=like_result(c, make)),
    "result's scale": lambda c, make: replace(c, scale=fenced(make(dims(c)[2]))),
    "result's factor": lambda c, make: replace(c, factor=like_result(c, make)),
    "residual": lambda c, make: replace(c, residual=like_result(c, make)),
    "all": lambda c, make: replace(
        c,
        row_bias=fenced(make(dims(c)[1])),
        column_bias=fenced(make(dims(c)[2]).half(), shift=1),
        activation="relu",
        slope_of=like_result(c, make),
        scale=fenced(make(dims(c)[2]).bfloat16()),
        factor=like_result(c, make, shift=1),
        residual=strided(like_result(c, make)),
    ),
    "float32": lambda c, make: replace(c, dtype=torch.float32),
    "float32 misaligned": lambda c, make: replace(c, dtype=torch.float32, misaligned=1),
    "result's rows apart": lambda c, make: replace(c, pitch=8),
    "result's rows apart by one": lambda c, make: replace(c, pitch=1),
    "result misaligned": lambda c, make: replace(c, misaligned=1),
}
INEXACT_RESULT_OPTIONS = {
    f"{what} of {name}": lambda c, make, what=what, name=name: replace(
        c, activation=name, slope_of=like_result(c, make) if what == "slope" else None
    )
    for name in ("gelu", "gelu_tanh")
    for what in ("value", "slope")
}


def with_option(c: Case, option: str, make=integers) -> Case:
    """The options "columns NAME" and "rows NAME" are of an operand."""
    which, _, name = option.partition(" ")
    if which in ("columns", "rows"):
        options = OPERAND_OPTIONS | FRACTIONS
        return replace(c, **{which: options[name](getattr(c, which), make)})
    return (RESULT_OPTIONS | INEXACT_RESULT_OPTIONS)[option](c, make)


EXACT = [f"{s} {o}" for s in ("columns", "rows") for o in OPERAND_OPTIONS] + [*RESULT_OPTIONS]
INEXACT = [*INEXACT_RESULT_OPTIONS]


def check_exact(library, seed: int, c: Case, told: str, sm90: bool = False) -> None:
    result, wanted = c.run(library, seed, sm90), c.wanted()
    wrong = (result != wanted).sum().item()
    assert not wrong, f"{told}, seed {seed}: {wrong} of {result.numel()} are wrong"
