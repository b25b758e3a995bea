"""The Triton kernels over tokens beyond values: tiles, memory around tensors, mixed dtypes."""

import itertools
import math

import pytest
import torch
from samples import convert, randn

from shiftmlp import testing
from shiftmlp.ops import OPS

pytest.importorskip("triton")

from shiftmlp.ops import _triton_tokens as tokens  # noqa: E402
from shiftmlp.ops._triton_math import sum_all  # noqa: E402
from shiftmlp.ops._triton_tokens_backward import PROGRAMS, weight_gradient_tile  # noqa: E402
from shiftmlp.ops.token_mlp.triton_kernels import fused_tile  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = torch.bfloat16


@pytest.mark.parametrize("most", [64, 208, 256])
def test_pieces_hold_all_tokens_with_little_waste(most):
    for n in range(1, 1025):
        parts = tokens.pieces(n, most)
        assert len(parts) <= 3 and sum(parts) <= most
        assert all(part >= 16 and part & (part - 1) == 0 for part in parts)
        tiles = math.ceil(n / most)
        assert math.ceil(n / sum(parts)) == tiles
        assert sum(parts) * tiles < n + tiles * (16 + n // tiles // 8)


def test_headline_tiles():
    assert tokens.pieces(196, 256) == (128, 64, 16)
    assert fused_tile(196, 384, 196, 768, BF16, 90) == {
        "S_PIECES": (128, 64, 16), "T_PIECES": (128, 64, 16),
        "BLOCK_C": 128, "BLOCK_D": 64, "num_warps": 8,
    }  # fmt: skip
    assert fused_tile(256, 384, 196, 768, BF16, 90) is None
    assert fused_tile(196, 384, 256, 768, BF16, 90) is None
    assert fused_tile(196, 384, 196, 768, torch.float32, 90) is None


def linear_args(make, B, S, T, C, **other):
    vectors = {name: make(C) for name in ("alpha", "beta", "scale")}
    given = vectors | {"weight": make(T, S), "bias": make(T), "residual": make(B, T, C)} | other
    return [
        make(B, S, C), "affine", given["alpha"], given["beta"], 0.0,
        given["weight"], given["bias"], given["scale"], given["residual"],
    ]  # fmt: skip


def mlp_args(make, B, S, D, T, C, activation="gelu"):
    return [
        make(B, S, C), "layer_norm", make(C), make(C), 1e-6, make(D, S), make(D),
        make(T, D), make(T), activation, make(C), make(B, T, C),
    ]  # fmt: skip


def gate_args(make, B, S, C):
    u, v = make(B, S, 2 * C).chunk(2, -1)
    return [u, v, "layer_norm", make(C), make(C), 1e-5, make(S, S), make(S)]


MANY_TILES = {
    "token_linear": lambda make: linear_args(make, 1, 36, 260, 130),
    "token_mlp": lambda make: mlp_args(make, 1, 100, 40, 82, 140),
    "token_mlp-two-kernels": lambda make: mlp_args(make, 1, 260, 40, 20, 24, "gelu_tanh"),
    "token_gate": lambda make: gate_args(make, 2, 60, 130),
}


def with_backward(op, args, make):
    """The op, and its backward with every gradient wanted."""
    given = dict(zip(op.names, args, strict=False))
    y = op(*args, "reference")
    saved = [given[name] for name in op.saved]
    return (op, args), (op.backward, [make(*y.shape), *saved, [True] * len(op.asked)])


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("name", MANY_TILES)
def test_many_tiles(name, dtype):
    make, draws = randn(dtype, DEVICE), ([], [])  # the forward's, and the backward's
    for _ in range(2):
        calls = with_backward(OPS[name.partition("-")[0]], MANY_TILES[name](make), make)
        for found, (op, args) in zip(draws, calls, strict=True):
            exact = op(*convert(args, torch.Tensor.double), "reference")
            found.append((op(*args, "triton"), op(*args, "reference"), exact))
    for found in draws:
        testing.assert_as_good_on_average(found)


@pytest.mark.parametrize("name", MANY_TILES)
def test_nan_stays_in_its_image_and_outside_is_not_read(name):
    """Every tensor lies in a field of NaN; one image is NaN as well."""

    def fenced(t):
        field = t.new_full([size + 2 for size in t.shape], float("nan"))
        inner = field[tuple(slice(1, -1) for _ in t.shape)]
        return inner.copy_(t)

    op = OPS[name.partition("-")[0]]
    small = {
        "token_linear": lambda make: linear_args(make, 3, 7, 5, 6),
        "token_mlp": lambda make: mlp_args(make, 3, 7, 9, 5, 6),
        "token_mlp-two-kernels": lambda make: mlp_args(make, 3, 210, 9, 5, 6),
        "token_gate": lambda make: gate_args(make, 3, 7, 6),
    }[name]
    args = small(randn(torch.float16, DEVICE))
    whole = op(*args, "triton")
    args = convert(args, fenced)
    testing.assert_same_bits(op(*args, "triton"), whole)
    args[0][1] = float("nan")
    spoilt = op(*args, "triton")
    assert spoilt[1].isnan().all()
    testing.assert_same_bits(spoilt[::2], whole[::2])


@pytest.mark.skipif(DEVICE == "cuda", reason="the file is mapped on the host")
@pytest.mark.parametrize("strides", [(2**31, 8, 1), (9, 2**30, 1)])
def test_offsets_have_64_bits(strides, tmp_path):
    size = sum(2 * stride for stride in strides) + 8
    storage = torch.from_file(str(tmp_path / "x"), True, size, dtype=torch.float16)
    far = storage.as_strided((2, 3, 8), strides)
    make = randn(torch.float16)
    x = make(2, 3, 8)
    far.copy_(x)
    mlp = mlp_args(make, 2, 3, 4, 3, 8)
    gate = [x, x, *gate_args(make, 2, 3, 8)[2:]]
    for op, args in (("token_mlp", mlp), ("token_gate", gate)):
        near = [x if isinstance(a, torch.Tensor) and a.shape == x.shape else a for a in args]
        away = [far if a is x else a for a in near]
        testing.assert_same_bits(OPS[op](*away, "triton"), OPS[op](*near, "triton"))


@pytest.mark.parametrize("name", ["token_linear", "token_mlp", "token_gate"])
def test_mixed_dtypes_of_autocast(name):
    """x, norm, scale and residual in float32, weights in bfloat16."""
    op = OPS[name]
    make = randn(torch.float32, DEVICE)
    for one, args in with_backward(op, MANY_TILES[name](make), make):
        args = [
            arg.to(BF16) if label in op.autocast and arg is not None else arg
            for label, arg in itertools.zip_longest(one.names[:-1], args)
        ]
        exact = one(*convert(args, torch.Tensor.double), "reference")
        testing.assert_as_good_as_torch(one(*args, "triton"), one(*args, "reference"), exact)


@pytest.mark.parametrize("name", ["token_linear", "token_mlp", "token_gate"])
def test_every_wanted_gradient_alone(name):
    """No other is computed, and its bits are those it has among all."""
    op, make = OPS[name], randn(torch.float32, DEVICE)
    args = {
        "token_linear": lambda: linear_args(make, 2, 5, 4, 6),
        "token_mlp": lambda: mlp_args(make, 2, 5, 7, 4, 6),
        "token_gate": lambda: gate_args(make, 2, 5, 6),
    }[name]()
    _, (backward, given) = with_backward(op, args, make)
    every = backward(*given, "triton")
    for index in range(len(every)):
        needs = [index == i for i in range(len(every))]
        (alone,) = backward(*given[:-1], needs, "triton")
        testing.assert_same_bits(alone, every[index])


NORMS = ("none", "affine", "affine-no-bias", "layer_norm")


def norm_args(make, C, norm) -> tuple:
    name, _, without = norm.partition("-")
    weight, bias = (None, None) if name == "none" else (make(C), None if without else make(C))
    return name, weight, bias, 1e-5


def integers(*shape):
    """Values whose sums of products are exact in float32."""
    return torch.randint(-2, 3, shape, device=DEVICE, dtype=torch.float32)


def backward_of(name, norm, has_scale, has_bias, make):
    """The backward of an op, its arguments but ``needs``, and which gradients there are."""
    B, S, D, C = 4, 12, 10, 24
    bias = make(S) if has_bias else None
    scale = make(C) if has_scale else None
    norm = norm_args(make, C, norm)
    args = {
        "token_linear": lambda: (make(B, S, C), *norm, make(S, S), bias, scale, None),
        "token_mlp": lambda: (
            make(B, S, C), *norm, make(D, S), None, make(S, D), bias, "relu", scale, None,
        ),
        "token_gate": lambda: (make(B, S, C), make(B, S, C), *norm, make(S, S), bias),
    }[name]()  # fmt: skip
    op = OPS[name]
    _, (backward, (*given, _)) = with_backward(op, args, make)
    of = dict(zip(op.names, args, strict=False))
    return backward, given, [of[tensor] is not None for tensor in op.asked]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("has_scale", [True, False], ids=["scale", "no-scale"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["token_linear", "token_mlp", "token_gate"])
def test_sums_of_the_adjoint(name, norm, has_scale, has_bias, dtype):
    """All gradients against the reference; only the first, or all but it, have the same bits."""
    if name == "token_gate" and has_scale:
        pytest.skip("token_gate has no scale")
    whole = dtype == torch.float32 and norm != "layer_norm"
    make = integers if whole else randn(dtype, DEVICE)
    backward, given, all_of_them = backward_of(name, norm, has_scale, has_bias, make)
    exact = backward(*convert(given, torch.Tensor.double), all_of_them, "reference")
    every = backward(*given, all_of_them, "triton")
    if whole:
        assert all(torch.equal(got.double(), want) for got, want in zip(every, exact, strict=True))
    else:
        torchs = backward(*given, all_of_them, "reference")
        testing.assert_as_good_as_torch(every, torchs, exact)
    first = [True] + [False] * (len(all_of_them) - 1)
    testing.assert_same_bits(backward(*given, first, "triton"), every[:1])
    others = [False, *all_of_them[1:]]
    testing.assert_same_bits(backward(*given, others, "triton"), every[1:])


def test_one_launch_sums_parts_of_any_length():
    sizes = ((1, (7,)), (33, (3, 5)), (200, (65,)), (5, (1,)))
    parts = [torch.randn(n, *shape, device=DEVICE) for n, shape in sizes]
    wide = torch.randn(40, 3, 33, device=DEVICE)
    wanted = [(p, torch.float32) for p in parts] + [(None, BF16), (wide[:, 1], torch.float16)]
    *sums, nothing, middle = sum_all(wanted)
    for part, total in zip(parts, sums, strict=True):
        torch.testing.assert_close(total, part.double().sum(0).float())
    assert nothing is None and middle.dtype == torch.float16
    torch.testing.assert_close(middle, wide[:, 1].double().sum(0).half())


def test_a_weight_gradient_fills_one_wave():
    for T, S in ((196, 196), (384, 196), (196, 384), (512, 196), (196, 512)):
        _, tiles = weight_gradient_tile(T, S, 768, BF16, 90)
        assert 0.9 < PROGRAMS // tiles * tiles / PROGRAMS <= 1


def test_refusals():
    op, make = OPS["token_linear"], randn(torch.float32, DEVICE)
    x, weight, nothing = make(1, 4, 8), make(4, 4), (None, None, None)
    none = ("none", None, None, 0.0)
    assert op.refusal("triton", x, *none, weight.double(), *nothing) == (
        "every tensor must have 16 or 32 bits, got torch.float64"
    )
    assert "an empty axis" in op.refusal("triton", x[:, :0], *none, weight[:, :0], *nothing)
    wide = x[..., :1].expand(1, 4, 16385)
    assert op.refusal("triton", wide, *none, weight, *nothing) == (
        "takes at most 16384 channels, got 16385"
    )
