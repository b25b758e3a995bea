"""The CUDA kernels, run on the CPU in ten adversarial orders, and bugs planted to be caught."""

import itertools

import emulator
import pytest
import torch
from emulator import fenced
from samples import SHIFTS

from shiftmlp.ops.spatial_shift.reference import shift_map, shift_map_backward
from shiftmlp.testing import assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
SEEDS = range(10)


@pytest.fixture(scope="module")
def library():
    return emulator.build()


def test_wrong_arguments_are_told(library):
    x = torch.zeros(1, 2, 8)
    with pytest.raises(TypeError):
        library.moments(0, x, 1e-6, x, None)
    with pytest.raises(TypeError):
        library.Operand(x=x, sums_rows=True)
    with pytest.raises(RuntimeError, match="seed 3: no kernel takes torch.int32"):
        library.moments(3, x.int(), 1e-6, x, x)
    with pytest.raises(RuntimeError, match="no kernel takes swish"):
        library.activation_backward(0, x, None, x, "swish", x)


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


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


SPATIAL_SHIFT = {
    "last pixels written past the end": ("if (w < W) y[", "y["),
    "words beyond the channels written": ("if (word >= p.words) return;", ""),
    "rows of the first image": ("image.data += row / H * p.stride_b + word", "image.data += word"),
    "the kept term of the adjoint lost": ("load(terms.kept)", "load(terms.moved)"),
    "vector accesses that run over a group's edge": ("all | p.shift.edges(p.C) * item", "all"),
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
    "hopper_example.cu": (HOPPER_EXAMPLE, check_hopper_example),
}


REPORTS = [
    (
        "hopper_example.cu", "place never handed back",
        r"hopper_example.cu:\d+: block \(\d, \d, 0\), thread \d+: deadlock: .*"
        r"threads 128 wait for an mbarrier \(hopper_example.cu:\d+\); "
        r"threads 0-127 wait for an mbarrier \(hopper_example.cu:\d+\)",
    ),
    ("hopper_example.cu", "no wait for a free place", "waits for no more arrivals"),
]  # fmt: skip


@pytest.mark.parametrize("source, bug, report", REPORTS, ids=lambda value: value)
def test_report_names_the_line_and_the_cause(source, bug, report):
    bugs, check_once = PLANTED[source]
    library = emulator.build(source, *bugs[bug])
    with pytest.raises(RuntimeError, match=report):
        check_once(library, seed=0)


BUGS = [(source, bug) for source in PLANTED for bug in PLANTED[source][0]]


@pytest.mark.parametrize("source, bug", emulator.some(BUGS))
def test_planted_bug_is_caught(source, bug):
    bugs, check_once = PLANTED[source]
    library = emulator.build(source, *bugs[bug])
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_once(library, seed)
