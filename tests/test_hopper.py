"""The kernels for sm_90a: run on the CPU in ten adversarial orders, with bugs planted in them."""

import emulator
import hopper
import pytest
import torch
from emulator import fenced
from hopper_bugs import TOKEN_LINEAR, TOKEN_MLP

from shiftmlp.ops import OPS
from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
DTYPES = (torch.bfloat16, torch.float16)
SEEDS = range(10)
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


def exact_moments(B, S):
    return [fenced(integers(B, S)), fenced(2.0 ** torch.randint(-1, 2, (B, S)))]


def token_linear_cases():
    """Calls whose sums are exact, so that the result has but one rounding, each with LayerNorm's
    statistics or None. The first goes around the ring of each block, with an odd number of tiles.
    """
    bf16 = torch.bfloat16
    x, *norm, weight, bias, scale, residual = token_linear_args(
        17, 49, 49, 136, bf16, "layer_norm", integers
    )
    padded = fenced(integers(49, 52).to(bf16))[:, :49]
    yield "small", (x, *norm, padded, bias, scale, residual, exact_moments(17, 49))
    args = token_linear_args(5, 196, 180, 72, torch.float16, "affine", integers)
    yield "large", (*args, None)
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


@pytest.mark.parametrize(
    "D, stride, wide", [(20, 20, 0), (24, 28, 0), (24, 32, 1), (8192, 8192, 0)]
)
def test_token_mlp_leaves_to_the_portable_path_what_does_not_fit(D, stride, wide, library):
    """Rows of w2 that TMA cannot address, and more hidden units than fit beside the tiles."""
    args = list(token_mlp_args(1, 196, 196, 8, D, torch.bfloat16))
    args[7] = torch.zeros(196, stride + 8, dtype=torch.bfloat16)[:, wide : wide + D]
    args[7] = args[7].as_strided((196, D), (stride, 1))
    with pytest.raises(RuntimeError, match="left to the portable path"):
        hopper.token_mlp(library, 0, *args)


def token_mlp_args(
    B, S, T, C, D, dtype, norm="none", activation="gelu", make=torch.randn, residual="x"
):
    x, norm, *norms, eps, w2, b2, scale, residual = token_linear_args(
        B, S, T, C, dtype, norm, make, residual
    )
    shapes = (D, S), (D,), (T, D)
    w1, b1, w2 = (fenced(make(*shape).to(dtype)) for shape in shapes)
    return x, norm, *norms, eps, w1, b1, w2, b2, activation, scale, residual


# Likewise, and hidden units that are no multiple of a chunk.
MLP_SHAPES = [
    (1, 1, 1, 8, 8, "none", "gelu", "x"),
    (3, 7, 7, 24, 24, "layer_norm", "gelu_tanh", "x"),
    (3, 49, 49, 136, 72, "affine", "relu", "other"),
    (1, 49, 130, 72, 200, "none", "none", "none"),
    (1, 144, 144, 64, 64, "layer_norm", "gelu", "x"),
    (3, 196, 196, 72, 136, "layer_norm", "gelu", "x"),
    (1, 197, 197, 40, 128, "affine", "gelu_tanh", "x"),
    (1, 256, 256, 64, 128, "layer_norm", "gelu", "x"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MLP_SHAPES, ids=str)
def test_token_mlp(shape, dtype, library):
    *sizes, norm, activation, residual = shape
    args = list(token_mlp_args(*sizes, dtype, norm, activation, residual=residual))
    S, D = sizes[1], sizes[4]
    args[5], args[7] = fenced(args[5] / S**0.5), fenced(args[7] / D**0.5)  # as layers start
    results = [hopper.token_mlp(library, seed, *args) for seed in SEEDS]
    for result in results[1:]:
        assert_same_bits(result, results[0])
    assert_as_good_as_torch(results[0], exact("token_mlp", args, dtype), exact("token_mlp", args))


def token_mlp_cases():
    """As for token_linear; hidden activations are rounded, but from exact sums."""
    fp16, bf16 = torch.float16, torch.bfloat16
    yield "small", (*token_mlp_args(9, 49, 49, 136, 72, fp16, "affine", "relu", integers), None)
    args = token_mlp_args(3, 196, 196, 72, 136, fp16, "layer_norm", "none", integers)
    yield "layer norm", (*args, exact_moments(3, 196))
    args = token_mlp_args(1, 256, 250, 64, 64, bf16, "none", "relu", integers)
    yield "two tiles of tokens", (*args, None)
    args = token_mlp_args(2, 12, 300, 72, 8, bf16, "none", "none", integers, "other")
    yield "another residual", (*args, None)
    x, *norm, w1, b1, w2, b2, _, scale, residual = token_mlp_args(
        1, 20, 20, 64, 40, bf16, "none", "none", integers
    )
    w1 = fenced(integers(40, 25).to(bf16))[:, 1:21]
    w2 = fenced(integers(20, 64).to(bf16))[:, 8:48]
    yield "strided", (x, *norm, w1, b1.float(), w2, None, "none", None, residual, None)


def check_token_mlp(library, seed):
    for case, args in token_mlp_cases():
        *inputs, stats = args
        x, norm, norm_weight, norm_bias, _, w1, b1, w2, b2, activation, scale, residual = (
            t.double() if isinstance(t, torch.Tensor) else t for t in inputs
        )
        normed = x if stats is None else (x - stats[0][..., None]) * stats[1][..., None]
        if norm != "none":
            normed = normed * norm_weight + norm_bias
        hidden = w1 @ normed + b1[:, None]
        hidden = (hidden.relu() if activation == "relu" else hidden).to(inputs[0].dtype).double()
        wanted = w2 @ hidden + (0 if b2 is None else b2[:, None])
        wanted = wanted * (1 if scale is None else scale) + residual
        result = hopper.token_mlp(library, seed, *args)
        wrong = (result != wanted.to(result.dtype)).sum().item()
        assert not wrong, f"{case}, seed {seed}: {wrong} of {result.numel()} are wrong"


@pytest.mark.parametrize("seed", SEEDS)
def test_token_mlp_is_exact_on_integers(seed, library):
    check_token_mlp(library, seed)


PLANTED = {
    "token_linear_sm90.cu": (TOKEN_LINEAR, check_token_linear),
    "token_mlp_sm90.cu": (TOKEN_MLP, check_token_mlp),
}


BUGS = [(source, bug) for source in PLANTED for bug in PLANTED[source][0]]


@pytest.mark.parametrize("source, bug", emulator.some(BUGS))
def test_planted_bug_is_caught(source, bug):
    bugs, check_once = PLANTED[source]
    library = emulator.build(emulator.holder(source, bugs[bug][0]), *bugs[bug], source)
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_once(library, seed)
