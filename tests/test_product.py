"""The tensor-core product in the emulator: every layout with every option."""

from dataclasses import replace

import emulator
import pytest
import torch
from products import EXACT, INEXACT, LAYOUTS, case, check_exact, moved, with_option
from samples import SHIFTS

from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SEEDS = range(10)


@pytest.fixture(scope="module")
def library():
    return emulator.build()


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
    images = 3 if max(sizes) < 50 else 1
    for seed in SEEDS:
        dtype = DTYPES[seed % 3]
        c = case(layout, *sizes, images=images, dtype=dtype)
        check_exact(library, seed, c, f"{sizes}, {dtype}")


@pytest.mark.parametrize("option", EXACT)
@pytest.mark.parametrize("layout", ["token", "channel", "channel dw"])
def test_options_are_exact_on_integers(layout, option, library):
    """In every combination of what is summed over, with either operand shared or none."""
    for seed in SEEDS:
        sizes = [(24, 14, 40), (21, 9, 27), (72, 24, 17)][seed % 3]
        c = case(layout, *sizes, images=2, dtype=DTYPES[seed // 3 % 3])
        check_exact(library, seed, with_option(c, option), option)


@pytest.mark.parametrize("which", ["columns", "rows"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_is_rounded_to_tf32(layout, which, library):
    """Once, behind the norm."""
    for seed in SEEDS[::5]:
        c = with_option(case(layout, 24, 20, 40, dtype=torch.float32), f"{which} fractions")
        check_exact(library, seed, c, which)
        check_exact(library, seed, with_option(c, f"{which} scaling"), f"{which} scaling")


@pytest.mark.parametrize("layout", ["token dw", "channel dw"])
def test_splits(layout, library):
    for seed in SEEDS:
        for sizes, images, splits in [((20, 9, 70), 3, 2), ((9, 8, 33), 2, 7), ((8, 8, 8), 0, 2)]:
            c = replace(case(layout, *sizes, images, DTYPES[seed % 3]), splits=splits)
            check_exact(library, seed, c, f"{sizes}, {splits} splits")


def test_more_blocks_than_a_launch_takes(library):
    few = emulator.build("product.cu", "(int64_t{1} << 31) - 1", "7")
    for layout in ("token", "channel dw"):
        c = case(layout, 136, 130, 8, images=5)
        check_exact(few, 0, replace(c, splits=3) if layout == "channel dw" else c, layout)


def test_offsets_beyond_32_bits(library, monkeypatch):
    """In memory that is asked for but, between its rows, never touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
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
    """Of a map with the sides 5 and 7, two of which are an image, with 21, 22 or 24 channels."""
    for seed, (layout, which) in zip(SEEDS, SHIFTED.items(), strict=False):
        for channels, dtype in ((24, DTYPES[0]), (21, DTYPES[1]), (22, torch.float32)):
            size, K = (70, channels) if layout != "channel dw" else (channels, 70)
            M, N = (9, size) if which == "rows" else (size, 9)
            c = case(layout, M, N, K, dtype=dtype)
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
