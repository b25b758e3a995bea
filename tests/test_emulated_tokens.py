"""The gradients of the ops that mix tokens on sm_90a, in the emulator, where the norm's adjoint is
part of the last product: images off its tiles, and what it leaves to the other kernels."""

import emulated
import emulator
import launches
import pytest
import torch
from samples import NO_NORM, affine, convert, layer_norm, linears, randn
from test_emulated_channels import backward_args, signs
from torch import Tensor

from shiftmlp.ops import OPS
from shiftmlp.testing import assert_as_good_as_torch, assert_same_bits

pytestmark = pytest.mark.skipif(not emulated.BACKENDS, reason=str(emulator.missing()))
B, C, SM90 = 3, 72, "emulated_sm90"
TOKENS = (49, 196, 197, 256, 576)


def token_linear(make, S, norm, scaled, C=C):
    x, weight, bias = make(B, S, C), make(S, S), make(S)
    return x, *norm(make, C), weight, bias, make(C) if scaled else None, None


def token_mlp(make, S, norm, scaled, D=40):
    layers = linears(make, S, D, S)
    return make(B, S, C), *norm(make, C), *layers, "relu", make(C) if scaled else None, None


def no_norm(make, C):
    return NO_NORM


def gradients(name, args, backend=SM90, alone=None):
    """Every one; or ``alone`` that of one tensor."""
    op = OPS[name]
    *inputs, needs = backward_args(op, args, args[0].flip(-1))
    needs = needs if alone is None else [index == alone for index in range(len(needs))]
    return op.backward(*inputs, needs, backend)


EXACT = {
    **{f"S{S}-{scaled}": ("token_linear", S, scaled) for S in TOKENS for scaled in (True, False)},
    "token_mlp": ("token_mlp", 203, True),
}


@pytest.mark.parametrize("case", EXACT)
def test_an_affine_norm_is_exact(case):
    name, S, scaled = EXACT[case]
    args = globals()[name](signs, S, affine, scaled)
    exact = gradients(name, convert(args, Tensor.double), "reference")
    for index, (ours, wanted) in enumerate(zip(gradients(name, args), exact, strict=True)):
        assert torch.equal(ours, wanted.to(ours.dtype)), f"gradient {index}"


CASES = {f"S{S}": ("token_linear", S, layer_norm, S % 2 > 0) for S in TOKENS}
CASES |= {
    "S197-no-scale": ("token_linear", 197, layer_norm, False),
    "S196-scale": ("token_linear", 196, layer_norm, True),
    "no-norm": ("token_linear", 56, no_norm, True),
    "token_mlp": ("token_mlp", 203, layer_norm, True),
    "token_mlp-no-norm": ("token_mlp", 203, no_norm, True),
}


@pytest.mark.parametrize("case", CASES)
def test_as_good_as_torch(case):
    name, S, norm, scaled = CASES[case]
    args = globals()[name](randn(torch.bfloat16), S, norm, scaled)
    args = [t / S**0.5 if isinstance(t, Tensor) and t.dim() == 2 else t for t in args]
    exact = gradients(name, convert(args, Tensor.double), "reference")
    assert_as_good_as_torch(gradients(name, args), gradients(name, args, "reference"), exact)


@pytest.mark.parametrize("norm", [affine, layer_norm])
@pytest.mark.parametrize("make", [token_linear, token_mlp])
def test_no_gradient_depends_on_which_others_are_wanted(make, norm):
    name, args = make.__name__, make(randn(torch.bfloat16), 203, norm, True)
    for index, wanted in enumerate(gradients(name, args)):
        [alone] = gradients(name, args, alone=index)
        assert_same_bits(alone, wanted)


def test_the_norms_adjoint_is_part_of_the_product_where_it_fits():
    pytest.importorskip("triton")
    sizes = [(("S", S), ("C", 384)) for S in TOKENS] + [(("S", 196), ("C", 20))]
    jobs = [("token_linear", each, B, "bwd", SM90) for each in sizes]
    found = [{name for name, *_ in made} for made in launches.record(jobs)]
    inside = [any("Layout<true, false>, (Finish)2" in name for name in names) for names in found]
    assert inside == [True] * len(TOKENS) + [False]
