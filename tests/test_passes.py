"""The passes of the CUDA ops over memory, in the emulator; and bugs planted to be caught."""

import emulator
import pytest
import torch
from emulator import fenced
from passes import EPS, Passes
from passes_defects import PLANTED

from shiftmlp.ops._math import (
    activate_backward,
    at_least_float32,
    normalize,
    normalize_backward,
    scale_backward,
    sum_leading,
)
from shiftmlp.testing import assert_as_good_as_torch, assert_close_to_rounding, assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))
SEEDS = range(10)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def library():
    return emulator.build()


def expected(x, dy, weight, bias, scale, residual, norm="layer_norm", eps=EPS):
    """What ``computed`` gives, in PyTorch and in the dtype of the operands."""
    wide = at_least_float32(x.dtype)
    y = normalize(x, norm, weight, bias, eps)
    dscaled, dscale = scale_backward(dy, y, scale, dy.dtype)
    gradients = normalize_backward(dscaled, x, norm, weight, eps, (True,) * 3)
    rows = [(dscaled * factor).to(wide).sum((0, 2)) for factor in (1, x)]
    gradients += dscale, activate_backward(dscaled, x, "relu")
    return [residual + scale * y, *gradients, sum_leading(dy), sum_leading(dy * x), *rows]


def computed(passes, x, dy, weight, bias, scale, residual, norm="layer_norm", eps=EPS):
    moments = passes.moments(x, eps) if norm == "layer_norm" else None
    y = passes.norm(x, moments, weight, bias, scale, residual)
    gradients = passes.norm_backward(dy, x, moments, weight, bias, scale)
    rows = [passes.sum_columns(dy, scale, other) for other in (None, x)]
    gradients += (passes.activation_backward(dy, scale, x, "relu"),)
    return [y, *gradients, passes.sum_rows(dy), passes.sum_rows(dy, x), *rows]


def operands(B, S, C, dtype, make=torch.randn, shift=0):
    """x, dy, weight, bias, scale and residual, each between NaNs."""
    shapes = (B, S, C), (B, S, C), (C,), (C,), (C,), (B, S, C)
    return [fenced(make(*shape).to(dtype), shift) for shape in shapes]


# Rows that are no multiple of a warp, an access or a group; then longer than a warp holds, and
# longer than a block owns, in wide and in narrow accesses.
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (2, 19, 24),
    (1, 50, 104),
    (2, 2, 1032),
    (1, 3, 1030),
    (1, 2, 2056),
    (1, 3, 2051),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_are_as_good_as_torch(shape, dtype, library):
    args = operands(*shape, dtype)
    results = [computed(Passes(library, seed), *args) for seed in (0, 1)]
    assert_same_bits(*results)
    assert_as_good_as_torch(results[0], expected(*args), expected(*(t.double() for t in args)))


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


def balanced(*shape):
    """Rows of as many 2 as -2: their mean is 0, and their standard deviation 2."""
    signs = torch.arange(shape[-1]).expand(shape) % 2 * 4.0 - 2
    return signs.gather(-1, torch.rand(shape).argsort(-1))


def integer_cases():
    """Name, operands, norm and, where not zero, the misalignment of results and of sums.

    Each result has but one rounding.
    """
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    yield "aligned", operands(3, 7, 24, bf16, integers), "affine"
    yield "no multiple of anything", operands(3, 7, 21, fp16, integers), "affine"
    yield "longer rows than a block owns", operands(1, 2, 2056, fp32, integers), "affine"
    yield "several rows under way", operands(1, 5, 1032, bf16, integers), "affine"
    x, dy, *vectors, residual = operands(3, 14, 48, bf16, integers)
    vectors = [t[:24] for t in vectors]
    strided = (x[:, ::2, 8:32], dy[:, 1::2, :24], *vectors, residual[:, ::2, 24:])
    yield "strided", strided, "affine"
    askew = (x[:, :, 1:25], dy[:, :, 2:26], *vectors, residual[..., :24])
    yield "rows misaligned", askew, "affine"
    for i in (0, 1, 5):
        args = operands(2, 3, 32, fp16, integers)
        args[i] = fenced(integers(2, 100).to(fp16))[:, :96].unflatten(1, (3, 32))
        yield f"images of operand {i} misaligned", args, "affine"
    for case, shape, dtype, spoilt, *shifts in [
        ("normalized", (2, 29, 32), bf16, None),
        ("longer than a warp holds", (1, 2, 4096), fp32, None),
        ("results misaligned", (1, 3, 32), fp32, None, 1, 0),
        ("sums misaligned", (1, 3, 32), fp32, None, 0, 1),
        *((f"operand {i} misaligned", (1, 3, 32), fp16, i) for i in range(6)),
    ]:
        args = operands(*shape, dtype, integers)
        args[0] = fenced(balanced(*shape).to(dtype))
        if spoilt is not None:
            args[spoilt] = fenced(args[spoilt], shift=1)
        yield case, args, "layer_norm", *shifts


def check_options(library, seed):
    """Float32 beside 16-bit data, and nothing but what is given."""
    passes = Passes(library, seed)
    x, dy, weight, bias, scale, residual = operands(2, 5, 24, torch.float32, integers)
    half = fenced(x.to(torch.float16))
    assert torch.equal(passes.norm(half), half)
    result = passes.norm(dy, scale=scale, dtype=torch.bfloat16)
    assert torch.equal(result, (dy * scale).bfloat16())
    assert torch.equal(passes.norm(half, None, weight, dtype=torch.float32), x * weight)
    wanted = residual + x * weight + bias
    result = passes.norm(half, None, weight, bias, None, residual, torch.bfloat16)
    assert torch.equal(result, wanted.bfloat16())
    result = passes.norm_backward(dy, half, None, weight, bias, scale)
    wanted = expected(*(t.double() for t in (x, dy, weight, bias, scale, residual)), "affine")
    for given, exact in zip(result, wanted[1:5], strict=True):
        assert torch.equal(given, exact.to(given.dtype))
    for given, dtype in ((half, torch.float32), (half, torch.bfloat16), (x, torch.float16)):
        like_x = fenced(dy.to(given.dtype))
        dx, *_ = passes.norm_backward(like_x, given, None, weight, None, scale, dtype=dtype)
        assert torch.equal(dx, (dy * weight * scale).to(dtype))
        dx = passes.activation_backward(like_x, scale, given, "none", dtype)
        assert torch.equal(dx, (dy * scale).to(dtype))
    assert torch.equal(passes.sum_rows(dy, half, 40), (dy * x).sum((0, 1)))
    assert torch.equal(passes.sum_rows(dy, parts=1, dtype=torch.float16), dy.sum((0, 1)).half())
    rows = (dy * x * scale).sum((0, 2))
    assert torch.equal(passes.sum_columns(dy, scale, half, 40, torch.bfloat16), rows.bfloat16())
    nothing = fenced(torch.empty(2, 0, 24))
    assert passes.norm(nothing).numel() == 0
    assert torch.equal(passes.sum_rows(nothing), torch.zeros(24))


def check_passes(library, seed):
    check_options(library, seed)
    for case, args, norm, *shifts in integer_cases():
        results = computed(Passes(library, seed, *shifts), *args, norm, 0.0)
        wanted = expected(*(t.double() for t in args), norm, 0.0)
        for index, (result, exact) in enumerate(zip(results, wanted, strict=True)):
            wrong = (result != exact.to(result.dtype)).sum().item()
            assert not wrong, (
                f"{case}, seed {seed}: {wrong} of {exact.numel()} of {index} are wrong"
            )
        if norm == "layer_norm":
            passes, (x, _, weight, bias, *_) = Passes(library, seed, *shifts), args
            moments = passes.moments(x)
            both = zip(
                passes.layer_norm(x, weight, bias),
                (passes.norm(x, moments, weight, bias), *moments),
                strict=True,
            )
            assert all(torch.equal(one, other) for one, other in both), f"{case}, seed {seed}"
    for C in (37, 1032):
        passes, x = Passes(library, seed), fenced(1 + torch.randn(1, 2, C))
        y = passes.norm(x, passes.moments(x))
        assert_close_to_rounding(y, normalize(x, "layer_norm", None, None, EPS))
        assert torch.equal(passes.layer_norm(x, None, None)[0], y)
        scale, residual = fenced(torch.randn(C)), fenced(torch.randn_like(x))
        assert torch.equal(passes.norm(x, scale=scale), x * scale)
        assert torch.equal(passes.norm(x, residual=residual), x + residual)


@pytest.mark.parametrize("seed", SEEDS)
def test_passes_are_exact_on_integers(seed, library):
    check_passes(library, seed)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
def test_activation_backward(activation, dtype, library):
    x, dy, scale, *_ = operands(2, 19, 24, dtype)
    exact = activate_backward(dy.double() * scale.double(), x.double(), activation)
    torchs = activate_backward(dy * scale, x, activation)
    result = Passes(library).activation_backward(dy, scale, x, activation)
    assert_as_good_as_torch(result, torchs, exact)


def test_moments_far_from_zero(library):
    """Where a mean of squares would have cancelled."""
    passes, x = Passes(library), fenced(1000 + torch.randn(1, 9, 1032))
    y = passes.norm(x, passes.moments(x))
    torchs, exact = (normalize(t, "layer_norm", None, None, EPS) for t in (x, x.double()))
    assert_as_good_as_torch(y, torchs, exact)


BUGS = [(source, bug) for source in PLANTED for bug in PLANTED[source]]


@pytest.mark.parametrize("source, bug", emulator.some(BUGS))
def test_planted_bug_is_caught(source, bug):
    library = emulator.build(source, *PLANTED[source][bug])
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in SEEDS:
            check_passes(library, seed)
