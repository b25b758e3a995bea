"""Modules against timm's and against plain PyTorch: values, gradients, dropout, every option."""

import copy

import pytest
import torch
import torch.nn.functional as F
from modules import (
    BLOCKS,
    LAYERS,
    NOT_GATE,
    TIMMS,
    C,
    S,
    assert_all_close_to_rounding,
    inputs,
    made,
    results,
    twin,
)
from torch import nn

from shiftmlp import Shift
from shiftmlp import nn as snn
from shiftmlp.ops.spatial_shift.reference import shift_map
from shiftmlp.testing import assert_as_good_as_torch, assert_close_to_rounding, assert_same_bits


def gelu_tanh():
    return nn.GELU(approximate="tanh")


OPTIONS = [
    *((name, {}) for name in BLOCKS),
    *(
        (name, options)
        for name in NOT_GATE
        for options in ({"act_layer": gelu_tanh}, {"act_layer": nn.ReLU})
    ),
    *((name, {"act_layer": None}) for name in NOT_GATE),
    *((name, {"norm_layer": snn.Affine}) for name in BLOCKS),
    *((name, {"norm_layer": nn.LayerNorm}) for name in BLOCKS),
    *((name, {"norm_layer": None}) for name in BLOCKS),
    ("mixer", {"mlp_ratio": 2.0}),
    ("resmlp", {"mlp_ratio": 1, "init_values": 0.5}),
    ("gmlp", {"mlp_ratio": 3}),
    ("s2", {"mlp_ratio": 3}),
    ("s2", {"norm_position": "pre"}),
    ("s2", {"norm_position": "pre", "norm_layer": snn.Affine}),
    ("s2", {"norm_position": "pre", "norm_layer": None, "act_layer": nn.ReLU}),
    ("s2", {"shift": Shift.S2_SWAPPED}),
    ("s2", {"shift": Shift.axial(5, "w")}),
    ("s2", {"shift": Shift(((1, 1), (0, -2)), border="wrap", split="cycle")}),
]


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.models.mlp_mixer")


MODES = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast": (torch.float32, torch.bfloat16),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TIMMS)
def test_a_block_is_as_good_as_timms(timm, name, mode, training, device):
    fused, plain, theirs, sizes = BLOCKS[name]
    dtype, autocast = MODES[mode]
    theirs = made(getattr(timm, theirs), *sizes, device=device, dtype=dtype).train(training)
    ours, simple = twin(fused, theirs, *sizes), twin(plain, theirs, *sizes)
    x = inputs(name, device=device, dtype=dtype)

    wanted = results(theirs, x, autocast)
    assert_all_close_to_rounding(results(simple, x, autocast), wanted)
    if mode == "float64":
        assert_all_close_to_rounding(results(ours, x), wanted)
    else:
        exact = results(copy.deepcopy(theirs).double(), x.double())
        assert_as_good_as_torch(results(ours, x, autocast), wanted, exact)


def label(value):
    """A test's id that is the same in every process."""
    if isinstance(value, str):
        return value
    words = (f"{k}={getattr(v, '__name__', getattr(v, 'spec', v))}" for k, v in value.items())
    return ",".join(words) or "default"


@pytest.mark.parametrize("name, options", OPTIONS, ids=label)
def test_the_fused_block_equals_the_plain_one(name, options):
    fused, plain, _, sizes = BLOCKS[name]
    simple = made(plain, *sizes, dtype=torch.float64, **options)
    ours = twin(fused, simple, *sizes, **options)
    x = inputs(name, dtype=torch.float64)
    assert_all_close_to_rounding(results(ours, x), results(simple, x))


@pytest.mark.parametrize(
    "rates", [{"drop": 0.3}, {"drop_path": 0.4}, {"drop": 0.3, "drop_path": 1}]
)
@pytest.mark.parametrize("name", NOT_GATE)
def test_dropout_and_drop_path_are_those_of_the_plain_block(name, rates):
    fused, plain, _, sizes = BLOCKS[name]
    simple = made(plain, *sizes, dtype=torch.float64, **rates)
    ours = twin(fused, simple, *sizes, **rates)
    x = inputs(name, dtype=torch.float64)
    found = []
    for module in (ours, simple):
        torch.manual_seed(5)
        found.append(results(module, x))
    assert_all_close_to_rounding(*found)
    assert not torch.equal(found[0][0], ours.eval()(x))  # it was in force, and is off in eval
    assert_all_close_to_rounding(results(ours, x), results(simple.eval(), x))


@pytest.mark.parametrize("name", [name for name in TIMMS if name != "gate"])
def test_drop_path_and_dropout_draw_as_timms(timm, name):
    fused, _, theirs, sizes = BLOCKS[name]
    for rates in ({"drop_path": 0.5}, {"drop": 0.3}):
        theirs_block = made(getattr(timm, theirs), *sizes, dtype=torch.float64, **rates)
        ours = twin(fused, theirs_block, *sizes, **rates)
        x = inputs(name, dtype=torch.float64)
        found = []
        for module in (ours, theirs_block):
            torch.manual_seed(7)
            found.append(module(x))
        assert_close_to_rounding(*found)


def test_dropout_switched_on_alone_is_honoured():
    block = made(snn.MixerBlock, C, S, drop=0.5).eval()
    x = inputs("mixer")
    quiet = block(x)
    block.mlp_tokens.drop1.train()
    assert not torch.equal(block(x), quiet)


@pytest.mark.parametrize("name", BLOCKS)
def test_swapping_the_class_makes_a_plain_block_fused(name):
    fused, plain, _, sizes = BLOCKS[name]
    block = made(plain, *sizes, dtype=torch.float64)
    x, keys = inputs(name, dtype=torch.float64), list(block.state_dict())
    before = results(block, x)
    block.__class__ = fused
    assert_all_close_to_rounding(results(block, x), before)
    assert list(block.state_dict()) == keys == list(fused(*sizes).state_dict())
    assert "backend='auto'" in repr(block)


FORMULAS = {
    "SpatialShift": lambda m, x: shift_map(x, m.shift),
    "ShiftLinear": lambda m, x: F.linear(shift_map(x, m.shift), m.weight, m.bias),
    "ShiftMlp": lambda m, x: m.fc2(shift_map(F.gelu(m.fc1(x)), m.shift)),
    "TokenLinear": lambda m, x: F.linear(x.mT, m.weight, m.bias).mT,
    "TokenMlp": lambda m, x: m.fc2(F.gelu(m.fc1(x.mT))).mT,
    "ChannelMlp": lambda m, x: m.fc2(F.gelu(m.fc1(x))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_formula_with_frozen_keys(name):
    make, like, keys = LAYERS[name]
    module = make(dtype=torch.float64)
    x = inputs(like, dtype=torch.float64)
    assert list(module.state_dict()) == keys
    y = module(x)
    assert y.is_contiguous()
    assert_close_to_rounding(y, FORMULAS[name](module, x))


@pytest.mark.parametrize("name", ["ShiftMlp", "TokenMlp", "ChannelMlp"])
def test_a_layer_with_dropout_is_its_formula_with_dropout(name):
    make, like, _ = LAYERS[name]
    module, x = make(drop=0.5, dtype=torch.float64), inputs(like, dtype=torch.float64)
    assert (module(x) == 0).float().mean() > 0.25  # the last dropout's zeros
    assert_close_to_rounding(module.eval()(x), FORMULAS[name](module, x))


def test_layers_without_bias_and_with_other_options():
    x, grid = inputs("mixer"), inputs("s2")
    shift = Shift.axial(3, "h")
    linear = snn.ShiftLinear(C, 8, bias=False, shift=shift)
    assert_close_to_rounding(linear(grid), F.linear(shift_map(grid, shift), linear.weight))
    mlp = snn.ShiftMlp(C, shift=shift, act_layer=nn.ReLU, bias=False)
    assert_close_to_rounding(mlp(grid), mlp.fc2(shift_map(F.relu(mlp.fc1(grid)), shift)))
    mlp = snn.TokenMlp(S, act_layer=None)
    assert_close_to_rounding(mlp(x), mlp.fc2(mlp.fc1(x.mT)).mT)
    assert_same_bits(snn.SpatialShift(shift)(grid), shift_map(grid, shift))


def test_the_gate_begins_open():
    unit = snn.SpatialGatingBlock(C, S).mlp_channels.gate
    assert (unit.proj.bias == 1).all()
    assert 0 < unit.proj.weight.abs().max() < 1e-5
    assert (snn.ResMLPBlock(C, S, init_values=0.25).ls2 == 0.25).all()
