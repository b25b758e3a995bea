"""The Triton kernels that hold whole rows of a product, which a norm or its adjoint ends."""

import itertools

import pytest
import torch
from samples import convert, randn
from torch import Tensor

from shiftmlp import testing

pytest.importorskip("triton")

from shiftmlp.ops import _triton_gemm  # noqa: E402
from shiftmlp.ops._math import (  # noqa: E402
    finish,
    normalize,
    normalize_backward,
)
from shiftmlp.ops._triton_linear_norm import (  # noqa: E402
    linear_norm,
    linear_norm_backward,
    row_tile,
)
from shiftmlp.ops._triton_rows import statistics  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("N", [16, 48, 112, 128, 144, 384, 512])
@pytest.mark.parametrize("dtype", _triton_gemm.HALVES, ids=str)
def test_a_norm_ends_the_product_of_whole_rows(N, dtype):
    make, M, K = randn(dtype, DEVICE), 70, 80
    x, weight, residual = make(M, K), make(N, K) / K**0.5, make(M, N)
    bias, norm_weight, norm_bias, scale = make(4, N)
    assert row_tile(N, K, dtype, 90) is not None

    def formula(x, weight, bias, norm_weight, norm_bias, scale, residual):
        branch = torch.nn.functional.linear(x, weight, bias)
        y = normalize(branch, "layer_norm", norm_weight, norm_bias, 1e-5)
        return finish(y, scale, residual)

    for given in (
        (x, weight, bias, norm_weight, norm_bias, scale, residual),
        (x, weight, None, None, None, None, None),
    ):
        ours = linear_norm(*given[:5], 1e-5, dtype, *given[5:])
        testing.assert_as_good_as_torch(
            ours, formula(*given), formula(*convert(given, Tensor.double))
        )


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3))[:-1], ids=str)
@pytest.mark.parametrize("norm", ["layer_norm", "affine"])
@pytest.mark.parametrize("N", [16, 240, 384])
def test_the_adjoint_of_a_norm_ends_the_product_of_whole_rows(N, norm, needs):
    make, M, K = randn(torch.bfloat16, DEVICE), 70, 48
    # Strides as in the backward of an MLP: the weight is transposed, x is a slice.
    dy, weight, x = make(M, K), make(K, N).mT / K**0.5, make(M, 2 * N)[:, :N]

    def formula(dy, weight, x, norm_weight):
        found = normalize_backward(dy @ weight.mT, x, norm, norm_weight, 1e-5, needs)
        return [t for t in found if t is not None]

    for norm_weight in (make(N), None)[: 1 if norm == "affine" else 2]:
        given = dy, weight, x, norm_weight
        stats = statistics(x, norm, 1e-5)
        ours = linear_norm_backward(dy, weight, x, norm, norm_weight, 1e-5, stats, needs)
        assert [t is not None for t in ours] == list(needs)
        testing.assert_as_good_as_torch(
            [t for t in ours if t is not None],
            formula(*given),
            formula(*convert(given, Tensor.double)),
        )


def test_rows_that_no_program_holds_take_two_kernels():
    bf16 = torch.bfloat16
    assert row_tile(384, 384, bf16, 90)["PIECES"] == (128, 128, 128)
    assert row_tile(320, 384, bf16, 90)["PIECES"] == (128, 128, 64)
    for N, K, dtype, arch in [
        (528, 384, bf16, 90), (384, 40, bf16, 90), (200, 384, bf16, 90),
        (384, 384, torch.float32, 90), (384, 384, bf16, 80), (384, 384, bf16, "gfx942"),
    ]:  # fmt: skip
        assert row_tile(N, K, dtype, arch) is None
