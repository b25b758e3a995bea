"""The kernels for sm_90a: run on the CPU in ten adversarial orders, with bugs planted in them, and
what the compiler makes of them."""

import sys
from pathlib import Path

import emulator
import hopper
import pytest
import torch
from emulator import fenced

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from machine_code import read_cubin  # noqa: E402

from shiftmlp.ops import OPS  # noqa: E402
from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16)
SEEDS = range(10)
THREADS = 384  # two warpgroups that multiply, and one that copies
NO_NORM = ("none", None, None, 0.0)


@pytest.fixture(scope="module")
def library():
    return emulator.build()


def exact(op, args, dtype=torch.float64):
    """The reference's result in this dtype."""
    args = [t.to(dtype) if isinstance(t, torch.Tensor) else t for t in args]
    return OPS[op].kernels["reference"][0](*args)


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


def token_linear_args(B, S, T, C, dtype, norm="none", make=torch.randn, residual="x"):
    """The op's arguments, each tensor between NaNs."""
    x, weight, bias, scale, *norms, other = (
        fenced(make(*shape).to(dtype))
        for shape in ((B, S, C), (T, S), (T,), (C,), (C,), (C,), (B, T, C))
    )
    norms = [None, None] if norm == "none" else norms
    residual = {"x": x[:, :T], "other": other, "none": None}[residual]
    return x, norm, *norms, 1e-6, weight, bias, scale, residual


# Sizes that are no multiple of a tile, of 16 tokens or of 64 channels, and each of the four tiles.
SHAPES = [
    (1, 1, 1, 8, "none", "x"),
    (3, 7, 7, 24, "layer_norm", "x"),
    (3, 49, 49, 136, "affine", "other"),
    (1, 49, 196, 72, "none", "other"),
    (1, 100, 90, 72, "affine", "x"),
    (3, 196, 196, 72, "layer_norm", "x"),
    (1, 197, 197, 40, "affine", "x"),
    (1, 256, 256, 64, "layer_norm", "x"),
    (1, 256, 130, 64, "none", "none"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_token_linear(shape, dtype, library):
    *sizes, norm, residual = shape
    args = token_linear_args(*sizes, dtype, norm, residual=residual)
    results = [hopper.token_linear(library, seed, *args) for seed in SEEDS]
    for result in results[1:]:
        assert_same_bits(result, results[0])
    assert_as_good_as_torch(
        results[0], exact("token_linear", args, dtype), exact("token_linear", args)
    )


def token_linear_cases():
    """Calls whose sums are exact, so that the result has but one rounding, each with LayerNorm's
    statistics or None. The first two go around the ring of each block."""
    bf16 = torch.bfloat16
    x, *norm, weight, bias, scale, residual = token_linear_args(
        17, 49, 49, 136, bf16, "affine", integers
    )
    padded = fenced(integers(49, 52).to(bf16))[:, :49]
    yield "small", (x, *norm, padded, bias, scale, residual, None)
    args = token_linear_args(5, 196, 180, 72, torch.float16, "layer_norm", integers)
    stats = [fenced(integers(5, 196)), fenced(2.0 ** torch.randint(-1, 2, (5, 196)))]
    yield "layer norm", (*args, stats)
    args = token_linear_args(1, 256, 250, 64, bf16, "none", integers)
    yield "two tiles of tokens", (*args, None)
    args = token_linear_args(2, 12, 100, 72, bf16, "none", integers, "other")
    yield "another residual", (*args, None)

    _, *norm, weight, bias, scale, _ = token_linear_args(2, 20, 20, 64, bf16, "affine", integers)
    storage = fenced(integers(2, 40, 80).to(bf16))
    x, fewer = storage[:, ::2, 8:72], storage[:, :12, 8:72]
    rows = fenced(integers(20, 32).to(bf16))[:, 1:21]
    yield "weight misaligned", (x, *norm, rows, bias.float(), None, x, None)
    rows = fenced(integers(20, 21).to(bf16))[:, :20]
    yield "rows of weight misaligned", (x, *norm, rows, None, scale.float(), x, None)
    residual = storage[:, :20, 8:72]
    yield "residual that begins like x", (x, *norm, weight, None, None, residual, None)
    yield "residual longer than x", (fewer, *norm, weight[:, :12], None, None, residual, None)


def check_token_linear(library, seed):
    for case, args in token_linear_cases():
        *inputs, stats = args
        x, norm, norm_weight, norm_bias, _, weight, bias, scale, residual = (
            t.double() if isinstance(t, torch.Tensor) else t for t in inputs
        )
        normed = x if stats is None else (x - stats[0][..., None]) * stats[1][..., None]
        if norm != "none":
            normed = normed * norm_weight + norm_bias
        wanted = weight @ normed + (0 if bias is None else bias[:, None])
        wanted = wanted * (1 if scale is None else scale)
        wanted = (wanted + (0 if residual is None else residual)).to(inputs[0].dtype)
        result = hopper.token_linear(library, seed, *args)
        wrong = (result != wanted).sum().item()
        assert not wrong, f"{case}, seed {seed}: {wrong} of {result.numel()} are wrong"


@pytest.mark.parametrize("seed", SEEDS)
def test_token_linear_is_exact_on_integers(seed, library):
    check_token_linear(library, seed)


def unfit_cases():
    """What TMA cannot address, and what the kernels do not take."""
    x = torch.zeros(2, 12, 32).bfloat16()
    yield "address", x[..., 1:25]
    yield "rows", torch.zeros(2, 12, 20).bfloat16()
    yield "stride", torch.zeros(2, 12, 36).bfloat16()[..., :32]
    yield "images", x[:1].expand(2, 12, 32)
    yield "length", torch.zeros(1, 257, 32).bfloat16()
    yield "dtype", x.float()


@pytest.mark.parametrize("case", [case for case, _ in unfit_cases()])
def test_token_linear_leaves_to_the_portable_path_what_does_not_fit(case, library):
    x = dict(unfit_cases())[case]
    weight = x.new_zeros(12, x.shape[1])
    with pytest.raises(RuntimeError, match="left to the portable path"):
        hopper.token_linear(library, 0, x, *NO_NORM, weight, None, None, None)


TOKEN_LINEAR = {
    "no wait for x": ("mbarrier_wait(shared.full[stage], i / kStages % 2);", ""),
    "wait for another x": ("full[stage], i / kStages % 2", "full[stage], i / kStages % 2 ^ 1"),
    "no wait for y": ("mbarrier_wait(shared.done[stage], (i / kStages - 1) % 2);", ""),
    "wait for another y": ("(i / kStages - 1) % 2", "i / kStages % 2"),
    "x loaded before y is stored": ("tma_store_wait_read<0>();", ""),
    "stores never closed": ("tma_store_commit();", ""),
    "too few bytes expected": ("sizeof shared.x[stage]", "sizeof shared.x[stage] / 2"),
    "too many bytes expected": ("sizeof shared.x[stage]", "sizeof shared.x[stage] + 16"),
    "no barrier after the moments": ("warp_barrier();", ""),
    "moments announced with x": ("full[stage], 2", "full[stage], 1"),
    "moments never announced": ("if (lane == 0) mbarrier_arrive(full);", ""),
    "y announced by whoever comes first": ("done[stage], kWarpgroup", "done[stage], 32"),
    "y never announced": ("mbarrier_arrive(shared.done[stage]);", ""),
    "no fence before y is stored": (
        "async_proxy_fence();\n    mbarrier_arrive", "mbarrier_arrive",
    ),
    "no wait for weight": ("cp_async_wait<0>();", ""),
    "copies of weight never closed": ("cp_async_commit();", ""),
    "no fence after weight": ("async_proxy_fence();\n  named_barrier", "named_barrier"),
    "no barrier after weight": (
        "named_barrier(1, kConsumers);\n  load_tokens", "load_tokens",
    ),
    "no barrier after the tokens": (
        "load_tokens(shared, p, tiles.t);\n  named_barrier(1, kConsumers);",
        "load_tokens(shared, p, tiles.t);",
    ),
    "no barrier after the mbarriers' start": ("block_barrier();", ""),
    "no fence before the products": ("wgmma_fence();\n#pragma", "#pragma"),
    "products never closed": ("wgmma_commit();\n    wgmma_wait", "wgmma_wait"),
    "no wait for the products": ("wgmma_wait<0>(sums)", "wgmma_wait<1>(sums)"),
    "sums not started at zero": ("weight, k > 0)", "weight, true)"),
    "tail of weight not masked": ("t + row < p.T && s < p.S", "t + row < p.T"),
    "moments beyond the end": ("s < p.S ? Moments", "true ? Moments"),
    "moments of the first image": ("int64_t{tile.b} * p.S + s", "s"),
    "first image's x": ("{tile.c, 0, tile.b}", "{tile.c, 0, 0}"),
    "first image's y": ("{tile.c, tiles.t, tile.b}", "{tile.c, tiles.t, 0}"),
    "first tokens' y": ("{tile.c, tiles.t, tile.b}", "{tile.c, 0, tile.b}"),
    "first tokens' weight": ("(p.weight) + t * p.weight_stride", "(p.weight)"),
    "first image's residual": ("tile.b * p.residual.stride_b +", ""),
    "first tokens' residual": ("tiles.t * p.residual.stride +", ""),
    "y in the place of the first tokens": ("add ? tiles.t : 0", "0"),
    "y in the place of its tokens": ("add ? tiles.t : 0", "tiles.t"),
    "residual only begins like x": ("&& a.stride == b.stride", ""),
    "residual is longer than x": (" && p.T <= p.S", ""),
    "last tiles left out": ("+ gridDim.x - 1) / gridDim.x", ") / gridDim.x"),
    "alignment of weight not asked for": ("reinterpret_cast<uintptr_t>(p.weight) % 8 == 0 &&", ""),
    "alignment of its rows not asked for": ("(p.S | p.weight_stride) % 4", "p.S % 4"),
    "length of its rows not asked for": ("(p.S | p.weight_stride) % 4", "p.weight_stride % 4"),
    "x not transposed": ("ldmatrix<true>(a[k]", "ldmatrix(a[k]"),
    "residual not transposed": ("ldmatrix<true>(words", "ldmatrix(words"),
    "y not transposed": ("stmatrix<true>(at", "stmatrix(at"),
    "moments of other tokens": ("16 * k + i / 2 * 8", "16 * k + i % 2 * 8"),
    "terms of other tokens": ("token = t + i / 2 * 8 + q + j", "token = t + q + j"),
    "terms of other channels": ("channels[i % 2]", "channels[i / 2]"),
    "rows of weight not swizzled": ("(column / 8 ^ row % 8)", "(column / 8)"),
}  # fmt: skip


PLANTED = {"token_linear_sm90.cu": (TOKEN_LINEAR, check_token_linear)}


@pytest.mark.parametrize("source, bug", [(s, bug) for s in PLANTED for bug in PLANTED[s][0]])
def test_planted_bug_is_caught(source, bug):
    bugs, check_once = PLANTED[source]
    library = emulator.build(source, *bugs[bug])
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_once(library, seed)


@pytest.mark.skipif(not emulator.NVCC.exists(), reason="nvcc is not installed")
@pytest.mark.parametrize("source", PLANTED)
def test_machine_code_multiplies_and_copies_as_it_is_meant_to(source):
    """cubin_for_hopper lets no word of the compiler pass, on spills or serialized products."""
    for kernel in read_cubin(emulator.cubin_for_hopper(source)):
        if kernel.threads == THREADS:
            assert kernel.stack == 0 and kernel.spills == 0, kernel
            assert kernel.registers == 65536 // THREADS // 8 * 8, kernel  # before they are dealt
            assert kernel.matrix and all(name.startswith("HGMMA") for name in kernel.matrix), kernel
            assert any(name.startswith("UTMALDG.3D") for name in kernel.memory), kernel
            assert any(name.startswith("UTMASTG.3D") for name in kernel.memory), kernel
            assert kernel.instructions["USETMAXREG.TRY_ALLOC.CTAPOOL"], kernel
