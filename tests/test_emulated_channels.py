"""The CUDA kernels of the ops that mix channels, in the emulator: more than a tile of everything,
sums in parts, shifts across tiles; then nothing to sum over, and more than can be counted."""

import emulated
import emulator
import pytest
import torch
from samples import NO_NORM, S2, SHIFTS, affine, convert, layer_norm, linears, randn
from test_kernels import exact_dtype
from torch import Tensor

from shiftmlp import Shift
from shiftmlp.ops import OPS
from shiftmlp.testing import assert_close_to_rounding, assert_same_bits

pytestmark = pytest.mark.skipif(not emulated.BACKENDS, reason=str(emulator.missing()))
B, H, W, C, D = 3, 14, 13, 72, 160


def signs(*shape):
    """-1, 0 and 1: whatever is stored between two products is a small integer, hence exact."""
    return torch.randint(-1, 2, shape).half()


def shift_linear(shift):
    x, y = signs(B, H, W, C), signs(B, H, W, D)
    return x, signs(D, C), signs(D), shift, "relu", signs(D), y


def shift_mlp(shift, norm=NO_NORM, post=NO_NORM):
    layers = linears(signs, C, D, C)
    return signs(B, H, W, C), *norm, *layers, shift, "relu", *post, signs(C), signs(B, H, W, C)


def channel_mlp(norm, post):
    x, *rest = shift_mlp(None, norm, post)
    return x, *rest[:8], *rest[9:]


CASES = {
    **{
        f"shift_linear-{name}": lambda name=name: shift_linear(SHIFTS[name].spec) for name in SHIFTS
    },
    **{f"shift_mlp-{name}": lambda name=name: shift_mlp(SHIFTS[name].spec) for name in SHIFTS},
    "shift_mlp-affine": lambda: shift_mlp(S2, affine(signs, C), affine(signs, C)),
    "channel_mlp": lambda: channel_mlp(NO_NORM, NO_NORM),
    "channel_mlp-affine": lambda: channel_mlp(affine(signs, C), NO_NORM),
    "channel_mlp-post-affine": lambda: channel_mlp(NO_NORM, affine(signs, C)),
}


def backward_args(op, args, dy):
    given = dict(zip(op.names, args, strict=False))
    needs = [given[name] is not None for name in op.asked]
    return dy, *(given[name] for name in op.saved), needs


EXACT = [(case, backend) for case in CASES for backend in emulated.BACKENDS]
EXACT += [(case, backend) for case in [*CASES][::8] for backend in emulated.WITH_TF32[2:]]


@pytest.mark.parametrize(("case", "backend"), EXACT)
def test_more_than_a_tile_is_exact(case, backend):
    op, args = OPS[case.partition("-")[0]], CASES[case]()
    dtype = exact_dtype(op, backend)
    args = convert(args, lambda t: t.to(dtype))
    y = op(*args, backend)
    wanted = op(*convert(args, Tensor.double), "reference")
    assert torch.equal(y, wanted.to(dtype))
    inputs = backward_args(op, args, signs(*y.shape).to(dtype))
    gradients = op.backward(*inputs, backend)
    wanted = op.backward(*convert(inputs, Tensor.double), "reference")
    for index, (gradient, exact) in enumerate(zip(gradients, wanted, strict=True)):
        assert torch.equal(gradient, exact.to(gradient.dtype)), f"gradient {index}"


@pytest.mark.parametrize("norm", [affine, layer_norm])
def test_no_gradient_depends_on_which_others_are_wanted(norm):
    op, make = OPS["channel_mlp"], randn(torch.bfloat16)
    args = make(B, H * W, C), *norm(make, C), *linears(make, C, D, C), "gelu", *NO_NORM, None, None
    *inputs, needs = backward_args(op, args, make(B, H * W, C))
    together = iter(op.backward(*inputs, needs, "emulated_sm90"))
    for index in (index for index, need in enumerate(needs) if need):
        [alone] = op.backward(*inputs, [i == index for i in range(len(needs))], "emulated_sm90")
        assert_same_bits(alone, next(together))


NOTHING = {
    "shift_linear": (signs(2, 3, 3, 0), signs(4, 0), signs(4), S2, "relu", signs(4), None),
    "shift_mlp": (
        signs(2, 3, 3, 5), *NO_NORM, *linears(signs, 5, 0, 4), S2, "relu", *NO_NORM, None, None,
    ),
    "channel_mlp": (signs(3, 0), *NO_NORM, *linears(signs, 0, 4, 3), "relu", *NO_NORM, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_no_channels_leave_the_bias(name):
    op, args = OPS[name], NOTHING[name]
    y = op(*args, "emulated")
    assert torch.equal(y, op(*args, "reference"))
    inputs = backward_args(op, args, signs(*y.shape))
    assert_close_to_rounding(op.backward(*inputs, "emulated"), op.backward(*inputs, "reference"))


def test_more_positions_than_fit_32_bits_are_refused():
    x = signs(1, 1, 1, 1).expand(2, 2**15, 2**15, 1)
    args = x, signs(1, 1), None, S2, "none", None, None
    told = OPS["shift_linear"].refusal("emulated", *args)
    assert told == f"x must have less than 2^31 rows, got {2**31}"


@pytest.mark.parametrize("case", ["shift_linear-s2", "shift_mlp-s2"])
@pytest.mark.parametrize("backend", ["cpu", "emulated"])
def test_more_steps_than_a_kernel_takes_are_refused(case, backend):
    op, args = OPS[case.partition("-")[0]], CASES[case]()
    many = Shift(((1, 0),) * 65, "keep", "floor").spec
    args = [many if isinstance(arg, str) and arg == S2 else arg for arg in args]
    inputs = backward_args(op, args, signs(*args[0].shape))
    told = "takes at most 64 steps, got 65"
    assert op.refusal(backend, *args) == op.backward.refusal(backend, *inputs) == told
