"""The CUDA kernels, run on the CPU in ten adversarial orders; planted bugs must not survive that."""

import emulator
import pytest
import torch
from emulator import fenced

from shiftmlp.ops import OPS
from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(emulator.missing(), reason=str(emulator.missing()))
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


def small_integers(*shape):
    return torch.randint(-3, 4, shape).float()


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
