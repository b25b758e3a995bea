"""token_mlp's backward for sm_90a: run on the CPU in ten adversarial orders, with planted bugs."""

import emulator
import hopper
import pytest
import torch
import torch.nn.functional as F
from emulator import fenced
from token_mlp_backward_bugs import BUGS
from torch import Tensor

from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
SEEDS = range(10)
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.fixture(scope="module")
def library():
    return emulator.build()


def integers(*shape):
    return torch.randint(-2, 3, shape).float()


def inputs(B, S, T, C, D, dtype, norm="none", activation="gelu", make=torch.randn, scaled=True):
    """The kernel's arguments, each tensor between NaNs. Of integers, so are LayerNorm's moments."""
    dy, x, w1, b1, w2, scale, *norms = (
        fenced(make(*shape).to(dtype))
        for shape in ((B, T, C), (B, S, C), (D, S), (D,), (T, D), (C,), (C,), (C,))
    )
    stats = None
    if norm == "layer_norm" and make is integers:
        stats = [fenced(integers(B, S)), fenced(2.0 ** torch.randint(-1, 2, (B, S)))]
    elif norm == "layer_norm":
        stats = hopper.moments(x, 1e-6)
    norms = [None, None] if norm == "none" else norms
    given = dy, x, norm, *norms, w1, b1, w2, activation, scale if scaled else None, stats
    return *given, fenced(normed_of(*given[1:5], stats).to(dtype))


def normed_of(x, norm, norm_weight, norm_bias, stats):
    normed = x if stats is None else (x - stats[0][..., None]) * stats[1][..., None]
    return normed if norm == "none" else normed * norm_weight + norm_bias


def expected(args, dtype=torch.float64, store=None) -> dict[str, Tensor]:
    """What the kernel computes, in this dtype; ``store`` is that of gradients inside."""
    dy, x, norm, norm_weight, norm_bias, w1, b1, w2, activation, scale, stats, normed = (
        t.to(dtype) if isinstance(t, Tensor) else t for t in args
    )
    inner = (w1 @ normed + b1[:, None]).requires_grad_()
    hidden = ACTIVATIONS[activation](inner)
    (dhidden,) = torch.autograd.grad(hidden, inner, w2.T @ (dy if scale is None else dy * scale))
    used = dhidden if store is None else dhidden.to(store).to(dtype)
    dnormed = w1.T @ used
    dnormed = dnormed if store is None else dnormed.to(store).to(dtype)
    result = {"hidden": hidden.detach(), "dhidden": dhidden, "dx": dnormed, "db1": dhidden}
    if norm == "none":
        return result | {"db1": dhidden.sum((0, 2))}
    wide = dnormed.float() if dtype != torch.float64 else dnormed  # as LayerNorm's own backward
    normal = normed_of(x, "none", None, None, stats and [s.to(wide.dtype) for s in stats])
    dx = norm_weight * wide
    if stats is not None:
        of_x = dx.mean(-1, keepdim=True) + normal * (dx * normal).mean(-1, keepdim=True)
        dx = (dx - of_x) * stats[1].to(wide.dtype)[..., None]
    return result | {
        "dx": dx.to(dtype),
        "db1": dhidden.sum((0, 2)),
        "dnorm_weight": (wide * normal).sum((0, 1)),
        "dnorm_bias": wide.sum((0, 1)),
    }


# Sizes off a tile, of each of the three tiles; clusters of 1 to 8 blocks.
SHAPES = [
    (2, 1, 1, 8, 8, "none", "gelu"),
    (3, 7, 5, 136, 24, "layer_norm", "gelu_tanh"),
    (2, 49, 49, 264, 72, "affine", "relu"),
    (2, 144, 130, 128, 136, "layer_norm", "gelu"),
    (1, 196, 196, 384, 72, "layer_norm", "gelu"),
    (1, 200, 208, 8, 64, "none", "none"),
    (1, 16, 16, 1024, 8, "layer_norm", "gelu"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_token_mlp_backward(shape, library):
    *sizes, norm, activation = shape
    dtype = (torch.bfloat16, torch.float16)[SHAPES.index(shape) % 2]
    args = list(inputs(*sizes, dtype, norm, activation))
    args[5], args[7] = (fenced(w / w.shape[1] ** 0.5) for w in (args[5], args[7]))
    results = [hopper.token_mlp_backward(library, seed, *args) for seed in SEEDS]
    for other in results[1:]:
        for name in other:
            assert_same_bits(other[name], results[0][name])
    torchs, exact = expected(args, dtype), expected(args)
    for name, result in results[0].items():
        assert_as_good_as_torch(result.to(dtype), torchs[name].to(dtype), exact[name])


def cases():
    """Calls whose sums are exact, so that a result has but one rounding."""
    fp16, bf16 = torch.float16, torch.bfloat16
    yield "small", inputs(3, 20, 12, 256, 72, fp16, "layer_norm", "relu", integers)
    yield "affine", inputs(3, 49, 49, 136, 24, bf16, "affine", "relu", integers)
    yield "large", inputs(1, 196, 180, 128, 136, fp16, "layer_norm", "relu", integers)
    yield "long", inputs(3, 100, 100, 64, 200, bf16, "none", "none", integers)
    args = list(inputs(5, 24, 24, 64, 16, bf16, "layer_norm", "none", integers, scaled=False))
    storage = fenced(integers(5, 48, 80).to(bf16))
    args[0] = storage[:, ::2, 8:72]
    args[5] = fenced(integers(16, 29).to(bf16))[:, 1:25]
    args[6] = args[6].float()
    args[7] = fenced(integers(24, 64).to(bf16))[:, 8:24]
    yield "strided", args


def spoiled():
    """ReLU has no slope at NaN from beyond the end. An affine norm's dx does not look at x."""
    args = inputs(1, 16, 16, 64, 24, torch.bfloat16, "affine")
    args[1][0, 3, 5] = torch.inf
    return args


def check(library, seed):
    for case, args in cases():
        wanted = expected(args, store=args[0].dtype)
        for name, result in hopper.token_mlp_backward(library, seed, *args).items():
            wrong = (result != wanted[name].to(result.dtype)).sum().item()
            assert not wrong, f"{case}, seed {seed}, {name}: {wrong} of {result.numel()} are wrong"
    for name, result in hopper.token_mlp_backward(library, seed, *spoiled()).items():
        assert name == "dnorm_weight" or result.isfinite().all(), f"seed {seed}: NaN in {name}"


@pytest.mark.parametrize("seed", SEEDS)
def test_token_mlp_backward_is_exact_on_integers(seed, library):
    check(library, seed)


UNFIT = [
    (201, 16, 64, 16),
    (16, 209, 64, 16),
    (16, 16, 1032, 16),
    (16, 16, 64, 20),
    (16, 16, 68, 8),
]


@pytest.mark.parametrize("sizes", UNFIT, ids=str)
def test_leaves_to_products_what_does_not_fit(sizes, library):
    with pytest.raises(RuntimeError, match="left to the portable path"):
        hopper.token_mlp_backward(library, 0, *inputs(1, *sizes, torch.bfloat16))


KERNEL = "token_mlp_backward_sm90.cu"


@pytest.mark.parametrize("bug", emulator.some(list(BUGS)))
def test_planted_bug_is_caught(bug):
    right, wrong = BUGS[bug]
    library = emulator.build(emulator.holder(KERNEL, right), right, wrong, KERNEL)
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check(library, seed)
