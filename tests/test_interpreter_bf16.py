"""Triton's interpreter, patched, against torch: casts bit for bit, arithmetic, products."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def cast_kernel(x_ptr, y_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(y_ptr + n, tl.load(x_ptr + n).to(y_ptr.dtype.element_ty))


@triton.jit
def add_kernel(x_ptr, y_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    x = tl.load(x_ptr + n)
    tl.store(y_ptr + n, x + x * x - 1.5)


@triton.jit
def dot_kernel(x_ptr, y_ptr, N: tl.constexpr):
    n = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + n)
    tl.store(y_ptr + n, tl.dot(x, x))


def assert_same_numbers(got, want):
    assert torch.equal(got.isnan(), want.isnan())
    got, want = (t.masked_fill(t.isnan(), 0).view(torch.int16) for t in (got, want))
    assert torch.equal(got, want)


def test_bf16_casts_round_like_torch():
    some = torch.randint(-(2**31), 2**31 - 1, (2**16,)).int()
    ties = some & ~0x7FFF | 0x8000
    subnormal = some & ~0x7F800000
    ends = torch.tensor([0, -(2**31), 0x7F800000, 0x7F7FFFFF, 0x7F7F8000, -8388608, 0x7F800001, 1])
    for bits in (some, ties, subnormal, ends.int()):
        x = bits.view(torch.float32).to(DEVICE)
        y = x.new_empty(x.shape, dtype=torch.bfloat16)
        cast_kernel[(1,)](x, y, len(x))
        assert_same_numbers(y, x.bfloat16())
    every = torch.arange(-(2**15), 2**15, device=DEVICE).short().view(torch.bfloat16)
    y = every.new_empty(every.shape, dtype=torch.float32)
    cast_kernel[(1,)](every, y, len(every))
    assert_same_numbers(y.bfloat16(), every)


@pytest.mark.skipif(DEVICE == "cuda", reason="tests the interpreter")
def test_bf16_computes_with_one_rounding_a_step():
    x = torch.randn(4096).bfloat16()
    y = torch.empty_like(x)
    add_kernel[(1,)](x, y, 4096)
    assert torch.equal(y, x + x * x - 1.5)
    whole = torch.randint(-4, 5, (32, 32)).bfloat16()
    product = torch.empty(32, 32)
    dot_kernel[(1,)](whole, product, 32)
    assert torch.equal(product, whole.float() @ whole.float())
