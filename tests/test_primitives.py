"""Each primitive of csrc/cuda against its meaning told in torch: in the emulator, and on a GPU,
where these tests say whether the emulator can be believed."""

import functools

import emulator
import pytest
import torch

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))


HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
MACHINES = ["emulator", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=MACHINES if HOPPER else MACHINES[:1])
def conform(request):
    """emulator.conform on tensors of the CPU, whichever machine runs the kernel."""
    if request.param == "emulator":
        return functools.partial(emulator.conform, emulator.build())
    library = emulator.build_for_gpu()

    def on_gpu(primitive, out, a=None, b=None, *args, seed=0):
        tensors = [t if t is None else t.cuda() for t in (out, a, b)]
        emulator.conform(library, primitive, *tensors, *args, seed=seed)
        for ours, theirs in zip((out, b), (tensors[0], tensors[2]), strict=True):
            if ours is not None:
                ours.copy_(theirs)
        return out

    return on_gpu


def fragments(matrices, transpose):
    """What ldmatrix gives: lane 4g + q has, of each matrix, columns 2q and 2q + 1 of row g."""
    if transpose:
        matrices = matrices.mT
    return matrices.reshape(-1, 32, 2).permute(1, 0, 2).contiguous()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count, transpose, conform):
    rows = torch.arange(32 * 8, dtype=torch.int16)
    matrices = rows.view(-1, 8, 8)[:count]
    loaded = conform("ldmatrix", rows.new_empty(32, count, 2), rows, None, count, transpose)
    assert torch.equal(loaded, fragments(matrices, transpose))
    stored = conform("stmatrix", rows.new_empty(count, 8, 8), loaded, None, count, transpose)
    assert torch.equal(stored, matrices)


def test_mma_tf32_rounds_its_operands_to_ten_bits(conform):
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    a[0, 0], b[0] = 1 + 2**-11, 1  # half a step: away from zero

    def rounded(t):
        fraction, exponent = torch.frexp(t.double())
        steps = fraction * 2**11
        return torch.ldexp(steps.sign() * (steps.abs() + 0.5).floor() / 2**11, exponent)

    wanted = (rounded(a) @ rounded(b)).float()
    assert torch.equal(conform("mma_tf32", torch.empty(16, 8), a, b), wanted)


def test_powers_and_reciprocals_are_within_two_steps_and_flush_denormal_numbers(conform):
    inf = float("inf")
    a = torch.cat([torch.linspace(-120, 120, 1001), torch.randn(999), torch.tensor([0.0, inf])])
    power, reciprocal = conform("approximations", torch.empty(2, len(a)), a)
    eps = torch.finfo(torch.float32).eps
    for ours, exact in ((power, a.double().exp2()), (reciprocal, 1 / a.double())):
        close = (ours - exact).abs() <= 2 * eps * exact.abs()
        assert (close | (ours == exact)).all()
    few = torch.tensor([-130.0, -inf, 1e-39, inf])
    flushed = conform("approximations", torch.empty(2, 4), few)
    assert flushed[0].tolist() == [0, 0, 1, inf] and flushed[1, 2:].tolist() == [inf, 0]


@pytest.mark.parametrize("words", [1, 2, 4])
def test_cp_async(words, conform):
    a = torch.arange(1, 32 * words + 1, dtype=torch.int32).view(32, words)
    wanted = a.where(torch.arange(32)[:, None] % 3 != 0, 0)
    assert torch.equal(conform("cp_async", torch.empty_like(a), a), wanted)


def test_store_global(conform):
    a = torch.arange(32 * 4, dtype=torch.int32).view(32, 4)
    wanted = a[torch.arange(32) ^ 1]
    assert torch.equal(conform("store_global", torch.empty_like(a), a), wanted)


def test_shuffles(conform):
    a = torch.arange(1, 33, dtype=torch.int32)
    wanted = torch.stack([a[5].expand(32), a[torch.arange(32) ^ 9]])
    assert torch.equal(conform("shuffles", a.new_empty(2, 32), a), wanted)


PLACES = [(0, 0), (12, 2), (-4, -1), (16, 4), (20, 0), (4, 1, 2), (8, 4, 3), (0, 0, 4)]
PLACES += [(3, 0, 1, 1), (0, -1, 3, 2), (-8, 0, 0, 0)]
BOXES = {2: ((6, 20), (4, 8)), 3: ((4, 6, 12), (2, 4, 8)), 4: ((3, 4, 5, 8), (2, 2, 3, 8))}


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_tma_outside_of_the_tensor_reads_zeros_and_writes_nothing(place, conform):
    sizes, box = BOXES[len(place)]
    a, b = torch.randn(sizes), torch.randn(sizes)
    wide = torch.zeros([size + 64 for size in sizes])
    wide[tuple(slice(32, 32 + size) for size in sizes)] = a
    # TMA counts dimensions from the dense one.
    at = [slice(32 + p, 32 + p + n) for p, n in zip(reversed(place), box, strict=True)]
    inside = [slice(max(p, 0), max(p + n, 0)) for p, n in zip(reversed(place), box, strict=True)]
    wanted = b.clone()
    wanted[tuple(inside)] = a[tuple(inside)]
    loaded = conform("tma", torch.empty(box), a, b, place)
    assert torch.equal(loaded, wide[tuple(at)])
    assert torch.equal(b, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma(dtype, conform):
    a, b = (torch.randn(rows, 16).to(dtype) for rows in (16, 8))
    assert torch.equal(
        conform("mma", torch.empty(16, 8), a, b), (a.double() @ b.double().T).float()
    )


@pytest.mark.parametrize("k_major", [True, False])
@pytest.mark.parametrize(
    "n, dtype", [(24, torch.float16), *((n, torch.bfloat16) for n in (8, 24, 104, 208, 256))]
)
@pytest.mark.parametrize("a_through_registers", [False, True])
def test_wgmma(a_through_registers, n, dtype, k_major, conform):
    a, b = (torch.randn(rows, 16).to(dtype) for rows in (64, n))
    wanted = (a.double() @ b.double().T).float()
    result = conform("wgmma", torch.empty(64, n), a, b, k_major, a_through_registers)
    assert torch.equal(result, wanted)


@pytest.mark.parametrize("seed", range(10))
def test_warpgroups_take_turns_at_named_barriers(seed, conform):
    out = torch.empty(8, dtype=torch.int32)
    conform("turns", out, seed=seed)
    assert out.tolist() == [0, 1] * 4


def check_cluster(conform, seed, clusters=2):
    a, lanes = torch.randn(clusters, 4, 3, 32), torch.arange(32)
    rows = torch.stack([a, a.roll(1, 1)], 3).flatten(2, 3)
    told = a[:, lanes % 4, 0, lanes][:, None, None].expand(clusters, 4, 1, 32)
    out = torch.full((clusters, 4, 7, 32), torch.nan)
    conform("cluster", out, a, seed=seed)
    assert torch.equal(out, torch.cat([rows, told], 2)), "wrong"


def check_exchange(conform, seed, clusters=2):
    a = torch.randint(-8, 8, (clusters, 4, 3, 32, 2)).float()
    out = torch.full_like(a, torch.nan)
    conform("exchange", out, a, seed=seed)
    assert torch.equal(out, a.sum(1, keepdim=True).expand_as(a)), "wrong"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("check", [check_cluster, check_exchange])
def test_blocks_of_a_cluster_work_for_one_another_and_wait_for_each_other(check, seed, conform):
    check(conform, seed)


CLUSTER_BUGS = {
    "no barrier after the mbarriers' start": (
        "}\n  cluster_barrier();\n  for (int round = 0; round < kRounds; ++round) {\n    if",
        "}\n  for (int round = 0; round < kRounds; ++round) {\n    if",
        "this mbarrier was never initialised",
    ),
    "no barrier before the exit": (
        "}\n  cluster_barrier();\n  at", "}\n  at",
        r"block \(\d, 0, 0\) of this cluster has exited",
    ),
    "exit with copies under way": (
        "mbarrier_wait(shared.full, round % 2);", "return;",
        "has exited|exits with TMA copies under way",
    ),
    "no wait for a multicast": (
        "mbarrier_wait(shared.full, round % 2);", "", "wrong|no more arrivals",
    ),
    "no wait for the block that reads": (
        "mbarrier_wait(shared.empty, round % 2 ^ 1);", "", "wrong|no more arrivals",
    ),
    "a multicast into the block alone": (
        "1 << rank | 1 << next", "1 << rank",
        r"deadlock: block \(\d, 0, 0\): threads .*; block \(\d, 0, 0\): threads",
    ),
    "a multicast out of the cluster": ("1 << next", "1 << 4", "the cluster has no such block"),
    "arrivals at this block only": (
        "(rank + lane * (kCluster - 1))", "rank", "wrong|no more arrivals",
    ),
    "an arrival too few": ("lane < 2", "lane < 1", "deadlock: block"),
    "the rank of a block in the grid": (
        "rank = cluster_rank()", "rank = blockIdx.x", "no such block",
    ),
    "sums before the others have told": (
        "mbarrier_wait_in_cluster(shared.told, round % 2);", "", "wrong|no more arrivals",
    ),
    "rows written while the others read": (
        "rows[round % 2][lane]", "rows[0][lane]", "wrong",
    ),
    "told to the next block alone": ("lane < kCluster", "lane < 2", "deadlock: block"),
    "no barrier before the exit from the exchange": (
        "cluster_barrier();  // the others", "// the others", "of this cluster has exited",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", CLUSTER_BUGS)
def test_planted_bug_of_a_cluster_is_caught(bug):
    right, wrong, report = CLUSTER_BUGS[bug]
    library = emulator.build("conformance_cluster.cu", right, wrong)
    with pytest.raises((RuntimeError, AssertionError), match=report):
        for seed in range(10):
            for check in (check_cluster, check_exchange):
                check(functools.partial(emulator.conform, library), seed)


@pytest.mark.skipif(not emulator.NVCC.exists(), reason="nvcc is not installed")
def test_compiles_for_a_gpu_loads_and_says_why_it_cannot_run():
    library = emulator.build_for_gpu()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA|driver"):
            emulator.conform(library, "turns", torch.empty(2, dtype=torch.int32))
