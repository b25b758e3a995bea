"""The tensor-core product in the emulator: every layout with every option, and planted bugs."""

import itertools
from dataclasses import dataclass, replace

import emulator
import pytest
import torch
from emulator import Operand, Product, Result, Rows, Vector, fenced
from samples import SHIFTS
from torch import Tensor
from torch.nn import functional as F

from shiftmlp import Shift
from shiftmlp.ops.spatial_shift.reference import shift_map
from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16)
SEEDS = range(10)
ACTIVATIONS = {
    "none": lambda v: v,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": F.relu,
}


@pytest.fixture(scope="module")
def library():
    return emulator.build()


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
    activation: str = "none"
    scale: Tensor | None = None
    factor: Tensor | None = None

    def elements(self, step) -> Tensor:
        """(..., result's columns or rows, terms), each operation followed by ``step``."""
        v = self.x.double()
        if self.shift:
            v = shift_map(v.unflatten(-2, (-1, *self.grid)), self.shift).flatten(-4, -2)
        if self.mean is not None:
            v = (v - self.mean.double()[..., None]) * self.rstd.double()[..., None]
        if self.weight is not None:
            v = v * self.weight.double()
        if self.bias is not None:
            v = v + self.bias.double()
        v = step(ACTIVATIONS[self.activation](step(v)))
        if self.scale is not None:
            v = step(v * self.scale.double())
        if self.factor is not None:
            v = step(v * self.factor.double())
        return v.mT if self.sums_rows else v

    def operand(self) -> Operand:
        pointers = [None if t is None else t.data_ptr() for t in (self.mean, self.rstd)]
        return Operand(
            Rows.of(self.x), self.sums_rows, None, *self.grid, *pointers,
            Vector.of(self.weight), Vector.of(self.bias),
            emulator.ACTIVATIONS.index(self.activation), Vector.of(self.scale),
            Rows.of(self.factor),
        )  # fmt: skip


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

    def reference(self, step=lambda v: v) -> Tensor:
        y = self.rows.elements(step) @ self.columns.elements(step).mT
        if self.splits:
            return (y if y.dim() == 2 else y.sum(0)).expand(1, -1, -1)
        y = y.expand(self.images, -1, -1)
        if self.row_bias is not None:
            y = y + self.row_bias.double()[:, None]
        if self.column_bias is not None:
            y = y + self.column_bias.double()
        y = step(y)
        if self.slope_of is not None:
            at = self.slope_of.double().requires_grad_()
            with torch.enable_grad():
                y = step(torch.autograd.grad(ACTIVATIONS[self.activation](at), at, y)[0])
        else:
            y = step(ACTIVATIONS[self.activation](y))
        for value in (self.scale, self.factor):
            if value is not None:
                y = step(y * value.double())
        return y if self.residual is None else y + self.residual.double()

    def wanted(self, step=lambda v: v) -> Tensor:
        """The reference in the result's dtype."""
        return self.reference(step).to(self.result_dtype)

    @property
    def result_dtype(self):
        return torch.float32 if self.splits else self.dtype or self.columns.x.dtype

    def run(self, library, seed: int) -> Tensor:
        """The kernel's result, the parts of a split one added up."""
        M, K = self.columns.elements(lambda v: v).shape[-2:]
        N = self.rows.elements(lambda v: v).shape[-2]
        dtype = self.result_dtype
        shape = (self.splits or self.images, N, M + self.pitch)
        whole = fenced(torch.full(shape, torch.nan, dtype=dtype), self.misaligned)
        y = whole[..., :M]
        result = Result(
            y.data_ptr(), emulator.DTYPES.index(dtype), *y.stride()[:2],
            Vector.of(self.row_bias), Vector.of(self.column_bias),
            emulator.ACTIVATIONS.index(self.activation), Rows.of(self.slope_of),
            Vector.of(self.scale), Rows.of(self.factor), Rows.of(self.residual),
        )  # fmt: skip
        params = Product(
            emulator.DTYPES.index(self.columns.x.dtype), self.columns.operand(),
            self.rows.operand(), result, self.images, M, N, K, self.splits,
        )  # fmt: skip
        emulator.product(library, seed, params, (self.columns.shift, self.rows.shift), whole)
        assert whole[..., M:].isnan().all(), f"seed {seed}: written between the rows of y"
        return y.sum(0, keepdim=True) if self.splits else y


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
    return replace(s, shift=shift, grid=(5, 7))


# Each makes an operand another one.
OPERAND_OPTIONS = {
    "norm": lambda s, make: normed(s, make, "layer_norm"),
    "affine": lambda s, make: normed(s, make, "affine"),
    "bare norm": lambda s, make: normed(s, make, "bare"),
    "scaling": lambda s, make: normed(s, make, "scaling"),
    "relu": lambda s, make: replace(s, activation="relu"),
    "scale": lambda s, make: replace(s, scale=fenced(make(s.x.shape[-1]).to(s.x.dtype))),
    "factor": lambda s, make: replace(s, factor=fenced(make(*s.x.shape).to(s.x.dtype))),
    "all": lambda s, make: replace(
        normed(s, make, "layer_norm"),
        activation="relu",
        scale=fenced(make(s.x.shape[-1])),
        factor=fenced(make(*s.x.shape).clamp(-1, 1).to(s.x.dtype), shift=1),
    ),
    "misaligned": lambda s, make: replace(s, x=fenced(s.x, shift=1)),
    "aligned to 4 bytes": lambda s, make: replace(s, x=fenced(s.x, shift=2)),
    "strided": lambda s, make: replace(s, x=strided(s.x)),
    "strided by 8 bytes": lambda s, make: replace(s, x=strided(s.x, 2)),
}
INEXACT_OPERAND_OPTIONS = {
    name: lambda s, make, name=name: replace(s, activation=name) for name in ("gelu", "gelu_tanh")
}


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
        options = OPERAND_OPTIONS | INEXACT_OPERAND_OPTIONS
        return replace(c, **{which: options[name](getattr(c, which), make)})
    return (RESULT_OPTIONS | INEXACT_RESULT_OPTIONS)[option](c, make)


EXACT = [f"{s} {o}" for s in ("columns", "rows") for o in OPERAND_OPTIONS] + [*RESULT_OPTIONS]
INEXACT = [f"{s} {o}" for s in ("columns", "rows") for o in INEXACT_OPERAND_OPTIONS]
INEXACT += [*INEXACT_RESULT_OPTIONS]


def check_exact(library, seed: int, c: Case, told: str) -> None:
    result, wanted = c.run(library, seed), c.wanted()
    wrong = (result != wanted).sum().item()
    assert not wrong, f"{told}, seed {seed}: {wrong} of {result.numel()} are wrong"


# M, N, K: no multiple of a tile, a copy or a matrix.
SIZES = [
    (1, 1, 1),
    (7, 7, 7),
    (49, 49, 72),
    (20, 49, 197),
    (72, 196, 49),
    (130, 197, 40),
    (64, 256, 36),
    (196, 24, 256),
    (129, 129, 33),
    (8, 8, 0),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes(layout, sizes, library):
    is_small = max(sizes) < 50
    for seed in SEEDS if is_small else SEEDS[max(sizes) % 7 :: 7]:
        c = case(layout, *sizes, images=3 if is_small else 1, dtype=DTYPES[seed % 2])
        check_exact(library, seed, c, str(sizes))


@pytest.mark.parametrize("option", EXACT)
@pytest.mark.parametrize("layout", ["token", "channel", "channel dw"])
def test_options_are_exact_on_integers(layout, option, library):
    """In every combination of what is summed over, with either operand shared or none."""
    for seed in SEEDS:
        sizes = [(24, 14, 40), (21, 9, 27), (72, 24, 17)][seed % 3]
        c = case(layout, *sizes, images=2, dtype=DTYPES[seed % 2])
        check_exact(library, seed, with_option(c, option), option)


@pytest.mark.parametrize("layout", ["token dw", "channel dw"])
def test_splits(layout, library):
    for seed in SEEDS:
        for sizes, images, splits in [((20, 9, 70), 3, 2), ((9, 8, 33), 2, 7), ((8, 8, 8), 0, 2)]:
            c = replace(case(layout, *sizes, images), splits=splits)
            check_exact(library, seed, c, f"{sizes}, {splits} splits")


def test_more_blocks_than_a_launch_takes(library):
    few = emulator.build("product.cu", "(int64_t{1} << 31) - 1", "7")
    for layout in ("token", "channel dw"):
        c = case(layout, 136, 130, 8, images=5)
        check_exact(few, 0, replace(c, splits=3) if layout == "channel dw" else c, layout)


def test_offsets_beyond_32_bits(library):
    """In memory that is asked for but, between its rows, never touched."""
    c = case("channel", 24, 9, 40, images=2)
    for which, strides in {"columns": (1 << 27, 1), "rows": (1 << 31, 64, 1)}.items():
        s = getattr(c, which)
        size = 1 + sum((n - 1) * stride for n, stride in zip(s.x.shape, strides, strict=True))
        far = s.x.new_empty(size).as_strided(s.x.shape, strides).copy_(s.x)
        c = replace(c, **{which: replace(s, x=far)})
    check_exact(library, 0, c, "far apart")


SHIFTED = {"channel": "rows", "channel dw": "columns", "channel dx": "rows", "token dw": "columns"}


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts(name, library):
    """Of a map with the sides 5 and 7, two of which are an image, with 24 or 21 channels."""
    for seed, (layout, which) in zip(SEEDS, SHIFTED.items(), strict=False):
        for channels in (24, 21):
            size, K = (70, channels) if layout != "channel dw" else (channels, 70)
            M, N = (9, size) if which == "rows" else (size, 9)
            c = case(layout, M, N, K)
            c = replace(c, **{which: moved(getattr(c, which), SHIFTS[name])})
            check_exact(library, seed, c, f"{layout}, {channels} channels")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_good_as_torch(layout, dtype, library):
    for option in [*INEXACT, "columns norm", "rows norm", "columns all", "rows all", "all"]:
        c = with_option(case(layout, 40, 49, 56, 1, dtype, torch.randn), option, torch.randn)
        ours = [c.run(library, seed) for seed in SEEDS[:2]]
        assert_same_bits(*ours)
        torchs = c.wanted(lambda v: v.to(dtype).double())
        try:
            assert_as_good_as_torch(ours[0], torchs, c.reference())
        except AssertionError as error:
            raise AssertionError(f"{option}: {error}") from None


def check_product(library, seed: int) -> None:
    """Few cases that go through every line of the kernel."""
    channel = case("channel", 24, 14, 100, images=2)
    token = case("token", 21, 196, 100)
    narrow = case("token dx", 20, 9, 70, images=2, dtype=torch.float16)
    summed = replace(case("channel dw", 9, 17, 70, images=3), splits=2)
    across = case("token dw", 9, 14, 100)
    pixels = case("channel", 24, 70, 40)
    by_rows = case("channel dw", 24, 9, 70)
    cases = {
        "channel": with_option(channel, "rows all"),
        "tiles": case("channel", 136, 130, 40),
        "tall tiles": case("channel dw", 66, 200, 33),
        "token": with_option(token, "columns all"),
        "token, result": with_option(with_option(token, "all"), "result's rows apart"),
        "narrow": with_option(narrow, "columns misaligned"),
        "narrow rows": with_option(narrow, "rows aligned to 4 bytes"),
        "strided": with_option(with_option(channel, "rows strided"), "float32"),
        "strided by 8 bytes": with_option(case("channel", 24, 14, 96), "rows strided by 8 bytes"),
        "affine": with_option(channel, "rows affine"),
        "relu": with_option(channel, "rows relu"),
        "scale": with_option(channel, "columns scale"),
        "factor": with_option(channel, "rows factor"),
        "result's factor": with_option(channel, "result's factor"),
        "residual": with_option(channel, "residual"),
        "result's relu": with_option(channel, "result's relu"),
        "slope": with_option(channel, "slope of relu"),
        "misaligned": with_option(channel, "result misaligned"),
        "two norms": with_option(with_option(across, "columns bare norm"), "rows bare norm"),
        "splits": summed,
        "more splits than chunks": replace(summed, splits=13),
        "no terms": case("token", 8, 8, 0),
    }
    for name in ("s2", "wrap", "zero-diagonal", "grid"):
        cases[name] = replace(pixels, rows=moved(pixels.rows, SHIFTS[name]))
        cases[f"{name} by rows"] = replace(by_rows, columns=moved(by_rows.columns, SHIFTS[name]))
    for told, c in cases.items():
        check_exact(library, seed, c, told)


def activation(x: Tensor, name: str, is_slope: bool, dtype: torch.dtype) -> Case:
    """The activation of the numbers in x, or its slope there."""
    columns = Side(fenced(torch.ones_like(x[:, None]) if is_slope else x[:, None]), False)
    rows = Side(fenced(x.new_ones(1, 1, 1)), False)
    slope_of = fenced(x[None, None]) if is_slope else None
    return Case(columns, rows, 1, activation=name, slope_of=slope_of, dtype=dtype)


def check_activations(library, seed: int) -> None:
    """Every activation and its slope, in bands of bfloat16's numbers of like size, up to Inf."""
    size = torch.arange(0, 0x7F81, 37, dtype=torch.int16).view(torch.bfloat16)
    x = torch.cat([size, -size, torch.tensor([torch.nan], dtype=torch.bfloat16)])
    x = x[x.double().abs().argsort()]
    for name, is_slope in itertools.product(ACTIVATIONS, (False, True)):
        c = activation(x, name, is_slope, x.dtype)
        ours, exact = c.run(library, seed).flatten(), c.reference().flatten()
        torchs = c.wanted(lambda v: v.bfloat16().double()).flatten()
        if name == "relu" and is_slope:
            exact = torch.where(x.isnan(), 0, exact)  # as the other kernels have it
        for band in zip(*(t.split(64) for t in (ours, torchs, exact)), strict=True):
            assert_as_good_as_torch(*band)
    # In 16 bits the two GELUs are much alike.
    x = torch.linspace(-8, 8, 512).bfloat16()
    for is_slope in (False, True):
        cases = [activation(x, name, is_slope, torch.float32) for name in ("gelu", "gelu_tanh")]
        for one, other in (cases, cases[::-1]):
            ours = one.run(library, seed).double()
            to_one, to_other = ((ours - c.reference()).abs().max() for c in (one, other))
            assert to_one < to_other / 50, f"{one.activation}: {to_one:.1e}, other {to_other:.1e}"


def test_activations(library):
    check_activations(library, 0)


PRODUCT = {
    "no wait for a copy": ("cp_async_wait<kStages - 2>();", ""),
    "a wait for one group too few": ("_wait<kStages - 2>", "_wait<kStages - 1>"),
    "no group for the missing chunks": (
        "    }\n    cp_async_commit();  // an empty group too: the wait above counts them",
        "    cp_async_commit();\n}",
    ),
    "no barrier before a chunk is read": ("block_barrier();  // all have", "// all have"),
    "a barrier for one warp alone": ("block_barrier();  // all", "if (!warp) block_barrier();  //"),
    "a chunk loaded into the one being read": ("= shared.stages[ring];", "= stage;"),
    "the newest chunk read": ("stages[ring + 1 < kStages ? ring + 1 : 0]", "stages[ring]"),
    "no barrier before the sums are stored": ("block_barrier();  // the sums", "// the sums"),
    "no barrier before the sums are read": ("}\n  block_barrier();\n", "}\n"),
    "an image's last chunk followed by itself": ("k = 0, ++b", "k = 0"),
    "the rows changed as the columns": ("pieces(stage, i, reading", "pieces(stage, 0, reading"),
    "changed before it is there": (
        "cp_async_wait<kStages - 2>();\n#pragma unroll 1\n      for (int i = 0; i < 2; ++i)",
        "for (int i = 0; i < 3; ++i) if (i == 2) cp_async_wait<kStages - 2>(); else",
    ),
    "another chunk's numbers": ("reading.next(p.K);", ""),
    "halves of b swapped": ("multiply(j, {b[0], b[1]})", "multiply(j, {b[1], b[0]})"),
    "quarters of a swapped": (
        "16 * i + lane / 8 % 2 * 8, k + lane / 16 * 8",
        "16 * i + lane / 16 * 8, k + lane / 8 % 2 * 8",
    ),
    "splits that all begin at the first chunk": ("begin = image * all / p.splits", "begin = 0"),
    "splits of images, not of chunks": ("begin % of_image", "0 * of_image"),
    "the first image alone": ("image = p.first + blockIdx.x / (across * down)", "image = p.first"),
    "rows beyond the end written": (
        "p.N - part.n < Shape::kN ? p.N - part.n : Shape::kN", "Shape::kN",
    ),
    "one column beyond the end written": ("count = p.M - m;", "count = p.M - m + 1;"),
    "no row bias": ("row_bias + column_bias", "column_bias"),
    "no column bias": ("row_bias + column_bias.at[i]", "row_bias"),
    "slope for value": ("if (y.slope_of.data)", "if (false)"),
    "result's scale lost": ("v.at[i] *= scale.at[i];", ""),
    "result's factor lost": ("if (y.factor.data) v.at", "if (false) v.at"),
    "residual lost": ("if (y.residual.data) v.at", "if (false) v.at"),
    "residual of another row": (
        "pack<T>(y.residual, part.image, part.n + row",
        "pack<T>(y.residual, part.image, part.n + first",
    ),
    "first image's result": ("part.image * y.stride_b", "0"),
    "float32 stored in 16 bits": ("if (y.dtype == DType::kFloat32)", "if (false)"),
    "alignment of the data not asked for": ("reinterpret_cast<uintptr_t>(rows.data)", "0"),
    "alignment of rows not asked for": ("rows.stride, int64_t{", "int64_t{"),
    "a copy over the end of a row": (", int64_t{side.columns}", ""),
    "a copy over the edge of a group": ("if (side.operand.shift) all", "if (false) all"),
    "a scale that is not asked for": ("o.scale.data || ", ""),
    "a factor that is not asked for": (" || o.factor.data", ""),
    "an activation that is not asked for": ("o.activation != Activation::kNone", "false"),
}  # fmt: skip


TILE = {
    "rows beyond the end copied": (
        "inside = pieces.r + i * kDown < side.rows && pieces.c + j", "inside = pieces.c + j",
    ),
    "columns beyond the end copied": (" && pieces.c + j < side.columns", ""),
    "rows beyond the end copied slowly": ("inside = r < side.rows && c <", "inside = c <"),
    "columns beyond the end copied slowly": ("r < side.rows && c < side.columns", "r < side.rows"),
    "the first image copied": ("data + b * rows.stride_b + pieces.r", "data + pieces.r"),
    "the first image copied slowly": ("data + b * side.operand.rows.stride_b", "data"),
    "the first map for all": ("image + int64_t{number} * H * W * stride + c", "image + c"),
    "zero for keep": ("keep = shift.border == Border::kKeep", "keep = false"),
    "keep for zero": ("keep = shift.border == Border::kKeep", "keep = true"),
    "zero for wrap": ("wrap = shift.border == Border::kWrap", "wrap = false"),
    "the group of the first channel": ("shift.group(c,", "shift.group(0,"),
    "a quotient rounded down": ("{1} << p) + d - 1) / d", "{1} << p)) / d"),
    "what was not there changed": ("v.at[i] = i < count ? v.at[i] : 0.0f;", ""),
    "rows beyond the end changed": ("if (row(piece) >= side.rows) return;", ""),
    "statistics of the first image": ("= b * rows + r", "= r"),
    "factor of another piece": ("batch[i - 1] = batch[i];", ";"),
    "no mean": ("(v.at[i] - mean)", "v.at[i]"),
    "no deviation": ("* rstd * weight", "* weight"),
    "no weight": ("* rstd * weight.at[i]", "* rstd"),
    "no bias": ("weight.at[i] + bias.at[i]", "weight.at[i]"),
    "no activation": ("with_activation(o.activation", "with_activation(Activation::kNone"),
    "no scale": ("v.at[i] *= scale.at[i];", ";"),
    "no factor": ("if (o.factor.data) {", "if (false) {"),
    "not transposed": ("ldmatrix<kSumsRows>", "ldmatrix<false>"),
}  # fmt: skip


ACTIVATION = {
    "tanh for erf": ("x * normal_cdf(x);", "x * logistic(tanh_argument(x));"),
    "erf for tanh": ("x * logistic(tanh_argument(x));", "x * normal_cdf(x);"),
    "relu drops a NaN": ("x < 0 ? 0.0f : x;", "fmaxf(x, 0.0f);"),
    "slope without the density": ("normal_cdf(x) + x * (0.39", "normal_cdf(x) + 0 * (0.39"),
    "slope without the cubic": ("(part + cubic)", "part"),
    "logistic of the wrong side": ("z < 0 ? smaller : larger", "larger"),
    "a square meets its zero": ("(part * x * x)", "(x * x * part)"),
}  # fmt: skip


PLANTED = {
    "product.cu": (PRODUCT, check_product),
    "cuda/tile.h": (TILE, check_product),
    "cuda/activation.h": (ACTIVATION, check_activations),
}


REPORTS = [
    ("a barrier for one warp alone", r"product.cu:\d+: .* divergent barrier: others are at"),
    ("alignment of the data not asked for", "the address is no multiple of"),
]


@pytest.mark.parametrize("bug, report", REPORTS, ids=lambda value: value)
def test_report_names_the_line_and_the_cause(bug, report):
    library = emulator.build("product.cu", *PRODUCT[bug])
    with pytest.raises(RuntimeError, match=report):
        check_product(library, seed=0)


@pytest.mark.parametrize("source, bug", [(s, bug) for s in PLANTED for bug in PLANTED[s][0]])
def test_planted_bug_is_caught(source, bug):
    bugs, check = PLANTED[source]
    library = emulator.build(source, *bugs[bug])
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check(library, seed)
