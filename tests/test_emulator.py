"""The CUDA kernels, run on the CPU in ten adversarial orders, and bugs planted to be caught."""

import emulator
import pytest
import torch
from emulator import fenced

from shiftmlp.ops import OPS
from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16)
SEEDS = range(10)


@pytest.fixture(scope="module")
def library():
    return emulator.build()


def reference(x, weight, bias=None, scale=None, residual=None):
    kernel = OPS["token_linear"].kernels["reference"][0]
    return kernel(x, "none", None, None, 0.0, weight, bias, scale, residual)


def operands(B, S, T, C, dtype, make=torch.randn, shift=0):
    """x, weight, bias, scale and residual, each between NaNs."""
    shapes = (B, S, C), (T, S), (T,), (C,), (B, T, C)
    return [fenced(make(*shape).to(dtype), shift) for shape in shapes]


# Sizes that are no multiple of a tile, a copy or a matrix; the last has two tiles of tokens.
SHAPES = [
    (1, 1, 1, 1),
    (3, 7, 7, 20),
    (1, 49, 49, 72),
    (3, 49, 196, 24),
    (1, 196, 196, 72),
    (1, 197, 197, 40),
    (1, 256, 256, 64),
    (1, 36, 400, 8),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_token_linear(shape, dtype, library):
    args = operands(*shape, dtype)
    results = [emulator.token_linear(library, seed, *args) for seed in SEEDS]
    for result in results[1:]:
        assert_same_bits(result, results[0])
    exact = reference(*(t.double() for t in args))
    assert_as_good_as_torch(results[0], reference(*args), exact)


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


def integer_cases():
    """Calls of token_linear whose sums are exact, so that the result has but one rounding."""
    whole, bf16 = (3, 52, 49, 72), torch.bfloat16
    x, weight, bias, scale, residual = operands(*whole, bf16, integers)
    yield "aligned", (x, weight, bias, scale, residual)
    yield "wide tile", operands(1, 68, 196, 40, torch.float16, integers)
    yield "no multiple of anything", operands(3, 7, 7, 21, bf16, integers)
    yield "rows misaligned", operands(1, 12, 12, 20, bf16, integers)
    yield "misaligned", operands(*whole, bf16, integers, shift=4)
    yield "weight misaligned", (x, fenced(weight, shift=1), bias, scale, residual)
    yield "without options", (x, weight)
    yield "no tokens", (x[:, :0], weight[:, :0], bias)
    strided = fenced(integers(3, 104, 80).to(bf16))[:, ::2, 8:]
    yield "strided", (strided, fenced(integers(49, 60).to(bf16))[:, :52], bias, scale, residual)
    yield "strided residual", (x, weight, None, None, fenced(integers(3, 98, 72).to(bf16))[:, ::2])


def check(case, args, library, seed):
    wanted = reference(*(t if t is None else t.double() for t in args)).to(args[0].dtype)
    result = emulator.token_linear(library, seed, *args)
    wrong = (result != wanted).sum().item()
    assert not wrong, f"{case}, seed {seed}: {wrong} of {result.numel()} are wrong"


@pytest.mark.parametrize("seed", SEEDS)
def test_integers_are_exact(seed, library):
    for case, args in integer_cases():
        check(case, args, library, seed)


PLANTED = {
    "no wait for a copy": ("cp_async_wait<kStages - 2>();", ""),
    "a wait for one group too few": ("_wait<kStages - 2>", "_wait<kStages - 1>"),
    "no group for the missing chunks": (
        "}\n    cp_async_commit();  // an empty group too: the wait below counts them",
        "cp_async_commit();\n}",
    ),
    "no barrier before a chunk is read": ("block_barrier();  // all have", "// all have"),
    "a barrier for one warp alone": ("block_barrier();  // all", "if (!warp) block_barrier();  //"),
    "a chunk loaded into the one being read": ("load_chunk(chunk + kStages - 1)", "load_chunk(chunk + kStages)"),
    "no barrier before the sums are stored": ("block_barrier();  // the sums", "// the sums"),
    "no barrier before the sums are read": ("}\n  block_barrier();\n", "}\n"),
    "rows beyond the end read": ("row < rows && column < columns", "column < columns"),
    "columns beyond the end read": ("row < rows && column < columns", "row < rows"),
    "tail of the input tokens not masked in x": ("p.S - s, p.C", "p.S, p.C"),
    "tail of the input tokens not masked in weight": ("p.T - tile.t, p.S - s", "p.T - tile.t, p.S"),
    "tokens beyond the end written": ("t >= p.T || c", "c"),
    "one token beyond the end written": ("t >= p.T || c", "t > p.T || c"),
    "channels beyond the end written": ("|| c >= p.C)", ")"),
    "no bias": ("[column + j] + bias", "[column + j]"),
    "no scale": ("if (p.scale) value", "if (false) value"),
    "no residual": ("if (p.residual) value", "if (false) value"),
    "residual of the first image": ("tile.b * p.residual_stride_b", "0"),
    "x of the first image": ("tile.b * p.x_stride_b", "0"),
    "halves of b swapped": ("{b[0], b[1]}", "{b[1], b[0]}"),
    "x not transposed": ("ldmatrix<true>(a", "ldmatrix(a"),
    "alignment of x not asked for": ("bytes % 16 == 0 &&", ""),
    "alignment of weight not asked for": ("p.weight) % 8 == 0", "p.weight) % 1 == 0"),
    "alignment of rows not asked for": ("by_8 % 8 == 0 &&", ""),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug):
    library = emulator.build("token_linear.cu", *PLANTED[bug])
    cases = list(integer_cases())
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        for seed in SEEDS:
            for case, args in cases:
                check(case, args, library, seed)
    print(caught.value)
