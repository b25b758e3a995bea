"""What modules promise besides values: state keys, copies, torch.compile, words in errors."""

import copy
import inspect
import pickle

import pytest
import torch
from modules import (
    BLOCKS,
    TIMMS,
    C,
    S,
    assert_all_close_to_rounding,
    every_module,
    inputs,
    made,
    results,
)
from torch import nn

from shiftmlp import nn as snn
from shiftmlp.testing import assert_close_to_rounding, assert_same_bits


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.models.mlp_mixer")


def affine_keys(*names):
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


GOLDEN = {
    "mixer": affine_keys(
        "norm1", "mlp_tokens.fc1", "mlp_tokens.fc2", "norm2", "mlp_channels.fc1", "mlp_channels.fc2"
    ),
    "resmlp": [
        "ls1", "ls2", "norm1.alpha", "norm1.beta", *affine_keys("linear_tokens"),
        "norm2.alpha", "norm2.beta", *affine_keys("mlp_channels.fc1", "mlp_channels.fc2"),
    ],
    "gate": affine_keys("norm", "proj"),
    "gmlp": affine_keys(
        "norm", "mlp_channels.fc1", "mlp_channels.gate.norm", "mlp_channels.gate.proj",
        "mlp_channels.fc2",
    ),
    "s2": affine_keys(
        "norm1", "mlp_shift.fc1", "mlp_shift.fc2", "norm2", "mlp_channels.fc1", "mlp_channels.fc2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_the_state_keys_of_a_block_are_frozen(name):
    fused, _, _, sizes = BLOCKS[name]
    assert list(fused(*sizes).state_dict()) == GOLDEN[name]


@pytest.mark.parametrize("name", TIMMS)
def test_constructors_take_timms_words_and_defaults(timm, name):
    fused, plain, theirs, sizes = BLOCKS[name]
    words = inspect.signature(getattr(timm, theirs)).parameters
    ours = inspect.signature(plain).parameters
    assert list(ours) == list(words)
    for word in set(words) - {"mlp_layer", "norm_layer"}:
        assert ours[word].default == words[word].default, word
    assert eps_by_path(fused(*sizes)) == eps_by_path(getattr(timm, theirs)(*sizes))


def eps_by_path(module):
    return {path: part.eps for path, part in module.named_modules() if hasattr(part, "eps")}


@pytest.mark.parametrize("name", every_module())
def test_modules_survive_copies_casts_and_functional_call(name):
    make, like = every_module()[name]
    module, x = make(), inputs(like)
    y = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same_bits(other(x), y)
        assert repr(other) == repr(module)
    zeros = {key: torch.zeros_like(value) for key, value in module.state_dict().items()}
    called = torch.func.functional_call(module, zeros, (x,))
    if zeros:
        assert not torch.equal(called, y)
    assert_same_bits(module(x), y)
    for dtype in (torch.float16, torch.float64):
        assert copy.deepcopy(module).to(dtype)(x.to(dtype)).dtype == dtype
    with torch.inference_mode():
        assert_close_to_rounding(module(x), y)
    if zeros:
        module(x).sum().backward()


@pytest.mark.parametrize("name", BLOCKS)
def test_meta_construction_then_assignment(name):
    fused, _, _, sizes = BLOCKS[name]
    source = made(fused, *sizes)
    module = fused(*sizes, device="meta")
    assert all(p.is_meta for p in module.parameters())
    assert module(inputs(name, device="meta")).shape == source(inputs(name)).shape
    module.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert_same_bits(module(inputs(name)), source(inputs(name)))


@pytest.mark.parametrize("name", every_module())
def test_compiles_into_one_graph(name):
    make, like = every_module()[name]
    module, x = make(dtype=torch.float64), inputs(like, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_all_close_to_rounding(results(compiled, x), results(module, x))
    torch._dynamo.reset()


def test_compiles_with_drop_path_and_a_free_batch():
    block = made(snn.MixerBlock, C, S, drop_path=1.0)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        x = torch.randn(batch, S, C)
        assert_same_bits(compiled(x), x)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", every_module())
def test_repr_shows_sizes_and_backend(name):
    make, _ = every_module()[name]
    text = repr(make())
    assert "backend='auto'" in text
    assert name == "SpatialShift" or str(C) in text or str(S) in text


@pytest.mark.parametrize("name", BLOCKS)
def test_the_backend_reaches_the_op(name):
    fused, _, _, sizes = BLOCKS[name]
    with pytest.raises(ValueError, match="backend must be one of .*'fpga'"):
        fused(*sizes, backend="fpga")
    block = made(fused, *sizes, backend="cuda")
    with pytest.raises(NotImplementedError):
        block(inputs(name))  # on the CPU


@pytest.mark.parametrize("name", ["mixer", "resmlp", "gmlp", "gate"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_another_token_count_is_named_with_its_image(name, drop):
    fused = BLOCKS[name][0]
    block = fused(8, 196) if name == "gate" else fused(8, 196, drop=drop)
    with pytest.raises(ValueError) as error:
        block(torch.randn(1, 256, 8))
    assert str(error.value) == (
        "the token-mixing weights were made for 196 tokens (14 x 14, as of 224 x 224 pixels at "
        "patch 16), got 256 tokens (16 x 16)"
    )


@pytest.mark.parametrize("seq_len, words", [
    (49, "49 tokens (7 x 7, as of 224 x 224 pixels at patch 32), got 50 tokens"),
    (81, "81 tokens (9 x 9, as of 144 x 144 pixels at patch 16), got 50 tokens"),
    (197, "197 tokens, got 50 tokens"),
])  # fmt: skip
def test_token_counts_in_words(seq_len, words):
    with pytest.raises(ValueError) as error:
        snn.TokenMlp(seq_len)(torch.randn(1, 50, 8))
    assert words in str(error.value)


class Doubled(nn.GELU):
    def forward(self, x):
        return 2 * super().forward(x)


MISTAKES = [
    (
        lambda: snn.MixerBlock(8, 4, act_layer=nn.SiLU),
        TypeError,
        "act_layer .* nn.GELU .* got SiLU",
    ),
    (lambda: snn.S2Block(8, act_layer=Doubled), TypeError, "act_layer .* got Doubled"),
    (lambda: snn.TokenMlp(4, act_layer=nn.SiLU), TypeError, "act_layer .* got SiLU"),
    (lambda: snn.ResMLPBlock(8, 4, norm_layer=nn.RMSNorm), TypeError, "norm_layer .* got RMSNorm"),
    (lambda: snn.SpatialGatingUnit(8, 4, norm_layer=nn.RMSNorm), TypeError, "got RMSNorm"),
    (lambda: snn.S2Block(8, norm_position="mid"), ValueError, "'post' or 'pre', got 'mid'"),
    (lambda: snn.S2Block(8, shift="S2"), TypeError, "shift must be a shiftmlp.Shift, got str"),
    (lambda: snn.SpatialShift("S2"), TypeError, "shift must be a shiftmlp.Shift, got str"),
    (lambda: snn.MixerBlock(8, 4, drop_path=1.5), ValueError, "between 0 and 1, got 1.5"),
    (lambda: snn.SpatialGatingUnit(7, 4), ValueError, "dim must be even, .* got 7"),
    (lambda: snn.S2Block(8)(torch.ones(2, 9, 8)), ValueError, r"\(B, H, W, C\), got \(2, 9, 8\)"),
    (lambda: snn.S2Block(8, drop=0.5)(torch.ones(2, 9, 8)), ValueError, r"got \(2, 9, 8\)"),
]


@pytest.mark.parametrize("call, error, words", MISTAKES, ids=[words for *_, words in MISTAKES])
def test_a_mistake_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_another_mlp_layer_is_refused_unless_it_is_two_linears(timm):
    from timm.layers import GluMlp, Mlp

    with pytest.raises(TypeError, match=r"mlp_tokens must be fc2\(act\(fc1\(x\)\)\), got GluMlp"):
        snn.MixerBlock(8, 4, mlp_layer=GluMlp)
    assert list(snn.MixerBlock(C, S, mlp_layer=Mlp).state_dict()) == GOLDEN["mixer"]
