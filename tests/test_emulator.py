"""The CUDA kernels, run on the CPU in ten adversarial orders, and bugs planted to be caught."""

import itertools

import emulator
import pytest
import torch
from emulator import fenced
from samples import SHIFTS

from shiftmlp.ops import OPS
from shiftmlp.ops.spatial_shift.reference import shift_map, shift_map_backward
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


def check_token_linear(library, seed):
    for case, args in integer_cases():
        wanted = reference(*(t if t is None else t.double() for t in args)).to(args[0].dtype)
        result = emulator.token_linear(library, seed, *args)
        wrong = (result != wanted).sum().item()
        assert not wrong, f"{case}, seed {seed}: {wrong} of {result.numel()} are wrong"


@pytest.mark.parametrize("seed", SEEDS)
def test_token_linear_is_exact_on_integers(seed, library):
    check_token_linear(library, seed)


def check_spatial_shift(library, seed, dtypes=(torch.bfloat16, torch.float64)):
    for shape in [(2, 3, 5, 24), (1, 1, 7, 10), (1, 4, 1, 7), (1, 2, 2, 301)]:
        for shift, dtype in itertools.product(SHIFTS.values(), dtypes):
            x = fenced(integers(*shape).to(dtype))
            result = emulator.spatial_shift(library, seed, x, shift)
            assert_same_bits(result, shift_map(x, shift))
            if shift.border == "keep":
                result = emulator.spatial_shift(library, seed, x, shift, backward=True)
                assert_same_bits(result, shift_map_backward(x, shift))


@pytest.mark.parametrize("dtype", emulator.DTYPES, ids=str)
def test_spatial_shift(dtype, library):
    check_spatial_shift(library, 0, [dtype])


TOKEN_LINEAR = {
    "no wait for a copy": ("cp_async_wait<kStages - 2>();", ""),
    "a wait for one group too few": ("_wait<kStages - 2>", "_wait<kStages - 1>"),
    "no group for the missing chunks": (
        "}\n    cp_async_commit();  // an empty group too: the wait below counts them",
        "cp_async_commit();\n}",
    ),
    "no barrier before a chunk is read": ("block_barrier();  // all have", "// all have"),
    "a barrier for one warp alone": ("block_barrier();  // all", "if (!warp) block_barrier();  //"),
    "a chunk loaded into the one being read": (
        "load_chunk(chunk + kStages - 1)", "load_chunk(chunk + kStages)",
    ),
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


SPATIAL_SHIFT = {
    "last pixels written past the end": ("if (w < W) y[", "y["),
    "words beyond the channels written": ("if (word >= p.words) return;", ""),
    "rows of the first image": ("image.data += row / H * p.stride_b + word", "image.data += word"),
    "the kept term of the adjoint lost": ("load(terms.kept)", "load(terms.moved)"),
    "vector accesses that run over a group's edge": (
        "(channels.begin | channels.end) * item :",
        "0 :",
    ),
    "images not told from rows": ("row % H, p.shift", "row, p.shift"),
}


HOPPER_EXAMPLE = {
    "no wait for x and weight": (
        "mbarrier_wait(shared.full[chunk % kStages], chunk / kStages % 2);", "",
    ),
    "no wait for a free place": (
        "mbarrier_wait(shared.empty[chunk % kStages], chunk / kStages % 2 ^ 1);", "",
    ),
    "wait for the wrong phase": ("chunk / kStages % 2 ^ 1", "chunk / kStages % 2"),
    "too few bytes expected": ("full, sizeof stage", "full, sizeof stage.x"),
    "too many bytes expected": ("full, sizeof stage", "full, sizeof stage + 16"),
    "place never handed back": ("mbarrier_arrive(shared.empty[chunk % kStages]);", ""),
    "place handed back by whoever comes first": ("empty[stage], kConsumers", "empty[stage], 32"),
    "place handed back before it was read": (
        "wgmma_wait<0>(sums);\n    mbarrier_arrive(shared.empty[chunk % kStages]);",
        "mbarrier_arrive(shared.empty[chunk % kStages]);\n    wgmma_wait<0>(sums);",
    ),
    "no wait for the products": ("wgmma_wait<0>", "wgmma_wait<1>"),
    "products never closed": ("wgmma_commit();", ""),
    "no fence before the products": ("wgmma_fence();", ""),
    "no barrier after the mbarriers' start": ("block_barrier();", ""),
    "no fence before the copy to y": ("async_proxy_fence();", ""),
    "no barrier before the copy to y": ("named_barrier(1, kConsumers);", ""),
    "a barrier for the producer too": ("(1, kConsumers)", "(1, kThreads)"),
    "copy to y never waited for": ("tma_store_wait_read<0>();", ""),
    "sums not started at zero": ("chunk > 0 || k > 0", "true"),
    "sums started anew in each chunk": ("chunk > 0 || k > 0", "k > 0"),
    "rows of y not swizzled": ("swizzled(shared.y, t + row, column)", "&shared.y[t + row][column]"),
    "x read as if k were along its rows": ("kTokens, Major::kMN>", "kTokens>"),
    "y not transposed": ("stmatrix<true>", "stmatrix"),
    "first image's y": ("{c, 0, b}", "{c, 0, 0}"),
}  # fmt: skip


def check_hopper_example(library, seed):
    """Three chunks through a ring of two, with a tail in every dimension."""
    B, S, T, C = 2, 140, 196, 72
    x = fenced(integers(B, S, C).to(torch.bfloat16))
    weight = fenced(integers(T, 144).to(torch.bfloat16))[:, :S]
    wanted = (weight.double() @ x.double()).to(x.dtype)
    for x_through_registers in (False, True):
        result = emulator.hopper_example(library, seed, x, weight, x_through_registers)
        wrong = (result != wanted).sum().item()
        assert not wrong, f"seed {seed}: {wrong} of {result.numel()} are wrong"


@pytest.mark.parametrize("seed", SEEDS)
def test_hopper_example_is_exact(seed, library):
    check_hopper_example(library, seed)


PLANTED = {
    "spatial_shift.cu": (SPATIAL_SHIFT, check_spatial_shift),
    "token_linear.cu": (TOKEN_LINEAR, check_token_linear),
    "hopper_example.cu": (HOPPER_EXAMPLE, check_hopper_example),
}


REPORTS = [
    (
        "hopper_example.cu", "place never handed back",
        r"hopper_example.cu:\d+: block \(\d, \d, 0\), thread \d+: deadlock: .*"
        r"threads 128 wait for an mbarrier \(hopper_example.cu:\d+\); "
        r"threads 0-127 wait for an mbarrier \(hopper_example.cu:\d+\)",
    ),
    ("token_linear.cu", "a barrier for one warp alone", "divergent barrier: others are at"),
    ("hopper_example.cu", "no wait for a free place", "waits for no more arrivals"),
    ("token_linear.cu", "alignment of x not asked for", "the address is no multiple of 16"),
]  # fmt: skip


@pytest.mark.parametrize("source, bug, report", REPORTS, ids=lambda value: value)
def test_report_names_the_line_and_the_cause(source, bug, report):
    bugs, check_once = PLANTED[source]
    library = emulator.build(source, *bugs[bug])
    with pytest.raises(RuntimeError, match=report):
        check_once(library, seed=0)


@pytest.mark.parametrize("source, bug", [(s, bug) for s in PLANTED for bug in PLANTED[s][0]])
def test_planted_bug_is_caught(source, bug):
    bugs, check_once = PLANTED[source]
    library = emulator.build(source, *bugs[bug])
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_once(library, seed)
