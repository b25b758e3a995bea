"""The product for sm_90a in the emulator: every layout with every option that it takes."""

from dataclasses import replace

import emulator
import pytest
import torch
from emulator import fenced
from product_sm90_bugs import BUGS
from products import LAYOUTS, Case, Side, case, check_exact, moved, strided, with_option
from samples import SHIFTS

from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16)
SEEDS = range(10)
PIXELS = 70  # two maps


@pytest.fixture(scope="module")
def library():
    return emulator.build()


def sm90_case(layout, M, N, K, dtype=torch.bfloat16, splits=1, **options) -> Case:
    """Of a weight whose rows begin at multiples of 16 bytes, as the adapters make it."""
    c = case(layout, M, N, K, dtype=dtype, **options)
    rest = c.rows.x.shape[-1] % 8
    if rest and layout.startswith("token"):
        c = replace(c, rows=replace(c.rows, x=strided(c.rows.x, 8 - rest)))
    return replace(c, splits=splits if layout.endswith("dw") else 0)


# M, N, K: no multiple of a tile or a chunk; parts of 128, of 192 and of 256 columns; more chunks
# than there are places for, with several parts for each block; blocks alone, and clusters of two
# with even and odd numbers of rows of parts.
SIZES = [
    (8, 8, 8),
    (24, 16, 72),
    (136, 136, 40),
    (192, 200, 56),
    (256, 136, 56),
    (512, 264, 72),
    (504, 248, 328),
    (136, 328, 456),
    (72, 392, 456),
    (376, 136, 328),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes(layout, sizes, library):
    for seed in SEEDS if max(sizes) < 100 else SEEDS[max(sizes) % 3 :: 4]:
        c = sm90_case(layout, *sizes, DTYPES[seed % 2])
        check_exact(library, seed, c, str(sizes), sm90=True)


def test_rows_that_are_no_multiple_of_anything(library):
    for seed in SEEDS:
        c = sm90_case(("channel", "channel dx")[seed % 2], 72, (1, 63, 129)[seed % 3], 40)
        check_exact(library, seed, c, "odd", sm90=True)


@pytest.mark.parametrize("tokens", [1, 7, 49, 196, 197, 256])
@pytest.mark.parametrize("layout", ["token", "token dx", "token dw"])
def test_images_of_tokens_that_are_no_multiple_of_anything(layout, tokens, library):
    """More parts than blocks, sums over many images and parts of them."""
    for seed in SEEDS:
        images, channels, others = 1 + seed % 5, (24, 136)[seed == 7], 40 + tokens % 3
        dtype = DTYPES[seed % 2]
        if layout == "token dw":
            sizes = tokens + tokens % 2, others, channels
            c = sm90_case(layout, *sizes, dtype, 1 + (images > 2), images=images)
        else:
            sizes = (tokens, others) if seed % 4 < 2 else (others, tokens)
            c = sm90_case(layout, channels, *sizes, dtype, images=images)
        check_exact(library, seed, c, f"{images} images of {sizes}", sm90=True)


OPTIONS = {
    "token": [
        "row bias", "column bias", "result's relu", "result's scale", "residual", "slope of relu",
        "inner", "float32", "rows strided", "columns strided",
    ],
    "token dx": ["slope of relu", "result's scale", "float32", "rows strided", "columns strided"],
    "token dw": ["rows strided", "columns strided"],
    "channel": [
        "column bias", "result's relu", "result's scale", "residual", "row bias", "inner",
        "float32", "rows strided", "columns strided",
        "rows norm", "rows affine", "rows bare norm", "rows scaling",
    ],
    "channel dx": ["slope of relu", "result's scale", "float32", "columns strided"],
    "channel dw": ["rows strided", "columns strided"],
}  # fmt: skip


@pytest.mark.parametrize("layout, option", [(x, option) for x in LAYOUTS for option in OPTIONS[x]])
def test_options_are_exact_on_integers(layout, option, library):
    for seed in SEEDS:
        sizes = [(24, 16, 40), (136, 72, 72)][seed % 2]
        images = 2 if layout.startswith("token") else 1
        c = with_option(sm90_case(layout, *sizes, DTYPES[seed % 2], images=images), option)
        check_exact(library, seed, c, option, sm90=True)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_all_options_at_once(activation, library):
    for seed in SEEDS:
        layout, images = [("channel", 1), ("channel dx", 1), ("token", 2), ("token dx", 2)][
            seed % 4
        ]
        c = with_option(sm90_case(layout, 200, 72, 136, images=images), "column bias")
        c = with_option(c, "result's scale")
        if layout in ("channel", "token"):
            c = with_option(with_option(c, "residual"), "row bias")
            c = replace(c, residual=strided(c.residual))
        else:
            c = with_option(c, "slope of relu")
            c = replace(c, slope_of=strided(c.slope_of))
        c = replace(c, activation=activation)
        check_exact(library, seed, c, layout, sm90=True)


def test_splits(library):
    for seed in SEEDS:
        for layout, *sizes, images, splits in [
            ("channel dw", 24, 16, 328, 1, 2),
            ("channel dw", 136, 136, 456, 1, 8),
            ("token dw", 24, 16, 136, 5, 4),
        ]:
            c = sm90_case(layout, *sizes, DTYPES[seed % 2], splits, images=images)
            check_exact(library, seed, c, f"{splits} splits", sm90=True)


@pytest.mark.parametrize("name", SHIFTS)
def test_shifted_rows(name, library):
    """Gathered by pieces of 2 to 16 bytes."""
    for seed in SEEDS:
        K = (24, 8 * len(SHIFTS[name].steps), 72)[seed % 3]
        c = sm90_case("channel", 72, PIXELS, K, DTYPES[seed % 2])
        c = replace(c, rows=moved(c.rows, SHIFTS[name]))
        if seed % 4 == 3:
            c = replace(c, rows=replace(c.rows, x=fenced(c.rows.x, shift=seed % 3)))
        check_exact(library, seed, c, f"{K} channels", sm90=True)


def test_a_gather_goes_around_the_ring(library):
    for seed in SEEDS:
        c = sm90_case("channel", 136, 5 * PIXELS, 456)
        c = replace(c, rows=moved(c.rows, SHIFTS["s2"]))
        check_exact(library, seed, c, "s2", sm90=True)


MOVES = [name for name, shift in SHIFTS.items() if "cycle" not in shift.spec]


@pytest.mark.parametrize("name", MOVES)
def test_moved_result(name, library):
    for seed in SEEDS:
        M = 8 * len(SHIFTS[name].steps) * (1 + seed % 3)
        c = sm90_case("channel", M, 2 * PIXELS, 40, DTYPES[seed % 2])
        c = with_option(with_option(c, "column bias"), ("inner", "result's relu")[seed % 2])
        check_exact(library, seed, replace(c, moves=SHIFTS[name]), f"{M} channels", sm90=True)


def unfit_cases():
    forward, dx = sm90_case("channel", 24, 35, 40), sm90_case("channel dx", 24, 35, 40)
    yield "channels", sm90_case("channel", 20, 35, 40)
    yield "terms", sm90_case("channel", 24, 35, 36)
    apart = torch.zeros(3000).bfloat16().as_strided((2, 35, 40), (1404, 40, 1))
    yield "images apart", replace(forward, rows=Side(apart, False), images=2)
    yield "moved images", replace(sm90_case("channel", 64, 35, 40, images=2), moves=SHIFTS["s2"])
    yield "address", with_option(forward, "rows misaligned")
    yield "strides", with_option(forward, "columns strided by 8 bytes")
    for option in ("columns scaling", "rows factor", "rows all", "result's factor"):
        yield option, with_option(forward, option)
    yield (
        "norm of several images",
        with_option(sm90_case("channel", 24, 35, 40, images=2), "rows norm"),
    )
    yield "norm of a gradient", with_option(dx, "rows norm")
    yield "norm of tokens", with_option(sm90_case("token", 24, 35, 40), "columns norm")
    yield (
        "norm of shifted rows",
        with_option(replace(forward, rows=moved(forward.rows, SHIFTS["s2"])), "rows norm"),
    )
    yield "result", with_option(forward, "result misaligned")
    yield "residual", replace(forward, residual=fenced(torch.zeros(1, 35, 24).bfloat16(), shift=1))
    yield "slope", with_option(forward, "slope of relu")
    for option in ("residual", "row bias", "result's relu", "inner"):
        yield f"{option} of a gradient", with_option(sm90_case("token dx", 24, 35, 40), option)
    yield "residual and slope", with_option(with_option(dx, "residual"), "slope of relu")
    yield "inner and residual", with_option(with_option(forward, "inner"), "residual")
    yield "inner and scale", with_option(with_option(forward, "inner"), "result's scale")
    yield "odd columns of parts", sm90_case("token dw", 7, 35, 40)
    yield "shifted rows of a gradient", replace(dx, rows=moved(dx.rows, SHIFTS["s2"]))
    yield "groups", replace(forward, moves=SHIFTS["s2"])
    yield "groups apart", replace(forward, moves=SHIFTS["cycle-h"])
    yield (
        "moved float32",
        replace(sm90_case("channel", 32, 35, 40), moves=SHIFTS["s2"], dtype=torch.float32),
    )
    yield "splits", sm90_case("channel dw", 24, 16, 72, splits=3)
    terms = Side(torch.empty(2**31 - 8, 8, dtype=torch.bfloat16, device="meta"), True)
    yield "terms beyond what is counted", Case(terms, terms, 1, splits=1)


@pytest.mark.parametrize("what", [what for what, _ in unfit_cases()])
def test_what_does_not_fit_is_left_to_the_portable_path(what, library):
    with pytest.raises(RuntimeError, match="left to the portable path"):
        dict(unfit_cases())[what].run(library, 0, sm90=True)


INEXACT = {
    "channel": ["value of gelu", "value of gelu_tanh"],
    "channel dx": ["slope of gelu", "slope of gelu_tanh"],
    "token": ["value of gelu"],
    "token dx": ["slope of gelu"],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout, option", [(x, option) for x in INEXACT for option in INEXACT[x]])
def test_as_good_as_torch(layout, option, dtype, library):
    c = sm90_case(layout, 40, 49, 56, dtype, make=torch.randn)
    c = with_option(c, option, torch.randn)
    ours = [c.run(library, seed, sm90=True) for seed in SEEDS]
    for other in ours[1:]:
        assert_same_bits(other, ours[0])
    torchs = c.wanted(lambda v: v.to(dtype).double())
    assert_as_good_as_torch(ours[0], torchs, c.reference())


def check_product(library, seed: int) -> None:
    """Few cases that go through every line of the kernel."""
    forward, dx = sm90_case("channel", 200, 136, 456), sm90_case("channel dx", 72, 136, 456)
    everything = with_option(with_option(forward, "column bias"), "result's scale")
    everything = with_option(with_option(everything, "residual"), "result's relu")
    gathered = sm90_case("channel", 136, 4 * PIXELS, 456)
    tokens, tokens_dx = (
        sm90_case(layout, 136, 196, 49, images=3) for layout in ("token", "token dx")
    )
    cases = {
        "forward": replace(everything, residual=strided(everything.residual)),
        "several parts": sm90_case("channel", 72, 520, 72),
        "256 columns": sm90_case("channel", 504, 264, 72, torch.float16),
        "192 columns": sm90_case("channel", 192, 200, 56),
        "gradient": with_option(with_option(dx, "slope of relu"), "result's scale"),
        "float32": with_option(
            with_option(sm90_case("channel", 520, 250, 40), "float32"), "column bias"
        ),
        "weight": sm90_case("channel dw", 136, 136, 456, splits=3),
        "256 columns in clusters": sm90_case("channel", 504, 250, 328),
        "192 columns in clusters": sm90_case("channel dx", 136, 328, 456),
        "gathered": replace(gathered, rows=moved(gathered.rows, SHIFTS["s2"])),
        "tokens": with_option(with_option(tokens, "row bias"), "inner"),
        "tokens and all": with_option(with_option(tokens, "row bias"), "residual"),
        "one image of tokens": replace(
            tokens, columns=replace(tokens.columns, x=fenced(tokens.columns.x[1]))
        ),
        "tokens' gradient": with_option(tokens_dx, "slope of relu"),
        "tokens' weight": sm90_case("token dw", 24, 40, 72, splits=2, images=5),
        "channels' inner": with_option(with_option(forward, "column bias"), "inner"),
        "normed": with_option(with_option(forward, "rows norm"), "column bias"),
        "normed in clusters": with_option(sm90_case("channel", 504, 250, 328), "rows norm"),
        "normed, 192 columns": with_option(sm90_case("channel", 192, 200, 56), "rows affine"),
    }
    pixels = sm90_case("channel", 96, 7 * PIXELS, 24)  # of whole clusters, but for a few rows
    for name in ("s2", "wrap", "keep-by-two", "partial"):
        cases[f"{name} on write"] = replace(with_option(pixels, "inner"), moves=SHIFTS[name])
    for told, c in cases.items():
        check_exact(library, seed, c, told, sm90=True)


@pytest.mark.parametrize("bug", emulator.some([*BUGS]))
def test_planted_bug_is_caught(bug):
    right, wrong = BUGS[bug]
    kernel = "product_sm90.cu"
    library = emulator.build(emulator.holder(kernel, right), right, wrong, kernel)
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_product(library, seed)
