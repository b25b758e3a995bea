"""Bugs planted in the product, each of which must be caught."""

import itertools
from dataclasses import replace

import emulator
import pytest
import torch
from emulator import fenced
from products import ACTIVATIONS, Case, Side, case, check_exact, moved, with_option
from samples import SHIFTS
from torch import Tensor

from shiftmlp.testing import assert_as_good_as_torch

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
SEEDS = range(10)


def check_product(library, seed: int) -> None:
    """Few cases that go through every line of the kernel."""
    channel = case("channel", 24, 14, 100, images=2)
    token = case("token", 21, 196, 100)
    narrow = case("token dx", 20, 9, 70, images=2, dtype=torch.float16)
    summed = replace(case("channel dw", 9, 17, 70, images=3), splits=2)
    across = case("token dw", 9, 14, 100)
    pixels = case("channel", 24, 70, 40)
    single, turned = (
        case(layout, 24, 20, 40, dtype=torch.float32) for layout in ("channel", "token dx")
    )
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
        "factor": with_option(channel, "rows factor"),
        "result's factor": with_option(channel, "result's factor"),
        "residual": with_option(channel, "residual"),
        "result's relu": with_option(channel, "result's relu"),
        "slope": with_option(channel, "slope of relu"),
        "inner": with_option(channel, "inner"),
        "misaligned": with_option(channel, "result misaligned"),
        "two norms": with_option(with_option(across, "columns bare norm"), "rows bare norm"),
        "splits": summed,
        "more splits than chunks": replace(summed, splits=13),
        "no terms": case("token", 8, 8, 0),
    }
    for which in ("columns", "rows"):
        cases[f"float32, {which}"] = with_option(
            with_option(single, f"{which} fractions"), f"{which} scaling"
        )
        cases[f"float32, {which} by rows"] = with_option(
            with_option(turned, f"{which} fractions"), f"{which} misaligned"
        )
    cases["float32, 8 bytes at a time"] = with_option(single, "rows aligned to 4 bytes")
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


def test_nothing_is_caught_without_a_bug():
    library = emulator.build()
    for seed in SEEDS:
        check_product(library, seed)
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
    "another chunk's numbers": ("reading.next(kDepth, p.K);", ""),
    "half of the terms": ("k += kDepth / 2", "k += kDepth"),
    "halves of b swapped": ("multiply(j, {b[0], b[1]})", "multiply(j, {b[1], b[0]})"),
    "quarters of a swapped": ("load<false>(a[i]", "load<true>(a[i]"),
    "quarters of b swapped": (
        "uint32_t b[4];\n          stage.rows.template load<true>",
        "uint32_t b[4];\n          stage.rows.template load<false>",
    ),
    "splits that all begin at the first chunk": ("begin = image * all / p.splits", "begin = 0"),
    "splits of images, not of chunks": ("begin % of_image", "0 * of_image"),
    "the first image alone": ("image = p.first + blockIdx.x / (across * down)", "image = p.first"),
}  # fmt: skip


RESULT = {
    "rows beyond the end written": (
        "block.N - block.n < kRows ? block.N - block.n : kRows", "kRows",
    ),
    "one column beyond the end written": ("count = block.M - m;", "count = block.M - m + 1;"),
    "no row bias": ("row_bias + column_bias", "column_bias"),
    "no column bias": ("row_bias + column_bias.at[i]", "row_bias"),
    "slope for value": ("if (y.slope_of.data)", "if (false)"),
    "result's scale lost": ("v.at[i] *= scale.at[i];", ""),
    "result's factor lost": ("if (y.factor.data) v.at", "if (false) v.at"),
    "residual lost": ("if (y.residual.data) v.at", "if (false) v.at"),
    "residual of another row": (
        "pack<T>(y.residual, block.image, block.n + row",
        "pack<T>(y.residual, block.image, block.n + first",
    ),
    "first image's result": ("at = block.image * y.stride_b", "at = 0"),
    "first image's inner": ("(y.inner) + block.image * y.stride_b", "(y.inner)"),
    "float32 stored in 16 bits": ("if (y.dtype == DType::kFloat32)", "if (false)"),
}  # fmt: skip


TILE = {
    "alignment of the data not asked for": ("reinterpret_cast<uintptr_t>(rows.data)", "0"),
    "alignment of rows not asked for": ("rows.stride, int64_t{", "int64_t{"),
    "a copy over the end of a row": (", int64_t{side.columns}", ""),
    "a copy over the edge of a group": ("if (side.operand.shift) all", "if (false) all"),
    "a factor that is not asked for": (" || o.factor.data", ""),
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
    "what was not there changed": ("v.at[i] = i < count ? v.at[i] : 0.0f;", ""),
    "rows beyond the end changed": ("if (row(piece) >= side.rows) return;", ""),
    "statistics of the first image": ("= b * rows + r", "= r"),
    "factor of another piece": ("batch[i - 1] = batch[i];", ";"),
    "no mean": ("(v.at[i] - mean)", "v.at[i]"),
    "no deviation": ("* rstd * weight", "* weight"),
    "no weight": ("* rstd * weight.at[i]", "* rstd"),
    "no bias": ("weight.at[i] + bias.at[i]", "weight.at[i]"),
    "no factor": ("if (o.factor.data) {", "if (false) {"),
    "not transposed": ("ldmatrix<kSumsRows>", "ldmatrix<false>"),
    "matrices apart by one of 16 bits": (": far) * kWord<T>;", ": far) * 8;"),
    "floats transposed": ("item(i, lane / 4, lane % 4)", "item(i, lane % 8, lane / 8)"),
    "floats truncated": (
        "to_tf32(*item(i, lane / 4, lane % 4))",
        "reinterpret_cast<const uint32_t&>(*item(i, lane / 4, lane % 4))",
    ),
    "floats rounded before they are changed": (
        "auto v = read<kItems>(at, kItems);",
        "auto v = read<kItems>(at, kItems);\n"
        "for (float& x : v.at) {\n"
        "  const uint32_t word = to_tf32(x);\n"
        "  if (sizeof(T) == 4) x = reinterpret_cast<const float&>(word);\n"
        "}",
    ),
    "a float's bytes taken for two": ("side.bytes / static_cast<int>(sizeof(T))", "side.bytes / 2"),
    "a float's bytes taken for two in every copy": (
        "j += kBytes / sizeof(T)", "j += kBytes / 2",
    ),
    "twice the alignment of rows": ("all |= n * item;", "all |= 2 * n * item;"),
}  # fmt: skip


ACTIVATION = {
    "tanh for erf": ("x * normal_cdf(x);", "x * logistic_of_exponent(tanh_exponent(x));"),
    "erf for tanh": ("x * logistic_of_exponent(tanh_exponent(x));", "x * normal_cdf(x);"),
    "relu drops a NaN": ("x < 0 ? 0.0f : x;", "fmaxf(x, 0.0f);"),
    "slope without the density": ("normal_cdf(x) + x * (0.39", "normal_cdf(x) + 0 * (0.39"),
    "slope without the cubic": ("(part + cubic)", "part"),
    "logistic of the wrong side": ("x < 0 ? smaller : larger", "larger"),
    "a square meets its zero": ("(part * x * x)", "(x * x * part)"),
}  # fmt: skip


DIVISOR = {"a quotient rounded down": ("{1} << p) + d - 1) / d", "{1} << p)) / d")}

PLANTED = {
    "product.cu": (PRODUCT, check_product),
    "cuda/divisor.h": (DIVISOR, check_product),
    "cuda/result.h": (RESULT, check_product),
    "cuda/tile.h": (TILE, check_product),
    "cuda/activation.h": (ACTIVATION, check_activations),
}


REPORTS = [
    (
        "product.cu",
        "a barrier for one warp alone",
        r"product.cu:\d+: .* divergent barrier: others are at",
    ),
    ("cuda/tile.h", "alignment of the data not asked for", "the address is no multiple of"),
]


@pytest.mark.parametrize("source, bug, report", REPORTS, ids=lambda value: value)
def test_report_names_the_line_and_the_cause(source, bug, report):
    library = emulator.build(source, *PLANTED[source][0][bug], "product.cu")
    with pytest.raises(RuntimeError, match=report):
        check_product(library, seed=0)


BUGS = [(source, bug) for source in PLANTED for bug in PLANTED[source][0]]


@pytest.mark.parametrize("source, bug", emulator.some(BUGS))
def test_planted_bug_is_caught(source, bug):
    bugs, check = PLANTED[source]
    library = emulator.build(source, *bugs[bug], "product.cu")
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check(library, seed)
