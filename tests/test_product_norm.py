"""The product for sm_90a that ends in a norm's adjoint, in the emulator: the gradient of x, and the
sums that the norm's own gradients are made of."""

from dataclasses import replace

import emulator
import pytest
import torch
from emulator import fenced
from product_norm import Case, case, check
from product_norm_bugs import BUGS
from products import strided

from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16)
SEEDS = range(10)


@pytest.fixture(scope="module")
def library():
    return emulator.build()


# M, N, K, images: clusters of 1 to 8 blocks, with parts of 128, 192 and 256 columns; columns and
# rows off them; more chunks than there are places for, and several parts for each cluster.
SIZES = [
    (8, 8, 8),
    (72, 63, 40),
    (128, 200, 72),
    (256, 129, 56),
    (384, 136, 72),
    (504, 264, 72),
    (768, 264, 200),
    (1000, 136, 136),
    (1288, 130, 40),
    (1000, 500, 136),
    (2048, 72, 72),
    (136, 648, 456),
    (8, 1, 8, 3),
    (72, 197, 40, 5),
    (136, 49, 49, 7),
    (384, 196, 196, 3),
    (520, 136, 72, 5),
    (1288, 65, 24, 3),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(sizes, library):
    for seed in SEEDS if max(sizes) < 300 else SEEDS[max(sizes) % 3 :: 4]:
        check(library, seed, case(*sizes, dtype=DTYPES[seed % 2]), str(sizes))


OPTIONS = {
    "affine": {"norm": "affine"},
    "no sums": {"sums": False},
    "affine without sums": {"norm": "affine", "sums": False},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, library):
    for seed in SEEDS:
        M = (24, 264, 520)[seed % 3]
        c = case(M, 136, 72, dtype=DTYPES[seed % 2], **OPTIONS[option])
        check(library, seed, c, option)


def test_no_weight_and_rows_apart(library):
    for seed in SEEDS[::3]:
        c = case(328, 200, 72, dtype=DTYPES[seed % 2])
        check(library, seed, replace(c, weight=None, x=strided(c.x)), "no weight")


def test_affine_norm_of_any_columns(library):
    check(library, 0, case(2056, 72, 40, norm="affine"), "affine")


def unfit_cases():
    c = case(24, 35, 40)
    yield "columns of more blocks than a cluster has", case(2056, 8, 8)
    yield "channels", case(20, 35, 40)
    yield "x", replace(c, x=fenced(c.x, shift=1))
    yield "x by 8 bytes", replace(c, x=strided(c.x, 2))


@pytest.mark.parametrize("what", [what for what, _ in unfit_cases()])
def test_what_does_not_fit_is_left_to_the_portable_path(what, library):
    with pytest.raises(RuntimeError, match="left to the portable path"):
        dict(unfit_cases())[what].run(library, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_torch(dtype, library):
    def round_to(t):
        return t.to(dtype).double()

    c = case(520, 136, 72, 3, dtype=dtype)
    rows, columns, x = (fenced(torch.randn(t.shape).to(dtype)) for t in (c.rows, c.columns, c.x))
    rstd, mean = 1 / x.double().std(-1, unbiased=False), x.double().mean(-1)
    weight = fenced(torch.randn(len(c.weight)))
    c = Case(rows, columns, x, fenced(mean.float()), fenced(rstd.float()), weight)
    ours = [c.run(library, seed) for seed in SEEDS]
    for other in ours[1:]:
        assert_same_bits(other, ours[0])
    torchs = [t.to(o.dtype) for t, o in zip(c.wanted(round_to), ours[0], strict=True)]
    assert_as_good_as_torch(ours[0], torchs, c.wanted())


def check_norm(library, seed: int) -> None:
    """Few cases that go through every line of the adjoint."""
    affine = case(136, 200, 72, norm="affine")
    cases = {
        "one block": case(72, 63, 40, dtype=torch.float16),
        "256 columns, two by two": case(504, 328, 328),
        "192 columns, four by two": case(768, 264, 200),
        "three by two": case(328, 200, 456),
        "seven": case(1288, 72, 392),
        "parts of few terms": case(648, 520, 24),
        "more digits than are stored": replace(affine, columns=fenced(37 * affine.columns)),
        "no sums": case(136, 72, 72, sums=False),
        "images": case(264, 72, 72, 3),
        "images of two by two": case(504, 197, 40, 3),
        "images of an affine norm": case(136, 200, 72, 3, norm="affine"),
    }
    for told, c in cases.items():
        check(library, seed, c, told)


@pytest.mark.parametrize("bug", emulator.some([*BUGS]))
def test_planted_bug_is_caught(bug):
    right, wrong = BUGS[bug]
    kernel = "product_sm90.cu"
    library = emulator.build(emulator.holder(kernel, right), right, wrong, kernel)
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_norm(library, seed)
