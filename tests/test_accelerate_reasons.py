"""Blocks that fused calls cannot stand for are kept, each with its reason."""

import copy

import pytest
import torch
from small_models import (
    Wrapped,
    images,
    mixer,
    mlp_mixer,
    ops_called,
    put,
    reasons,
    reference,
)
from torch import nn
from torch.nn.utils import parametrize

import shiftmlp
from shiftmlp.accelerate import REASONS
from shiftmlp.testing import assert_same_bits


class Derived(mlp_mixer.MixerBlock):
    def forward(self, x):
        return x


class QuantLinear(nn.Linear):
    pass


def quantize_tensor(block):
    from torch.testing._internal.two_tensor import TwoTensor

    weight = block.mlp_channels.fc1.weight.data
    block.mlp_channels.fc1.weight = nn.Parameter(TwoTensor(weight, weight.clone()))


def shard(block):
    from torch.distributed.tensor import DTensor

    weight = block.mlp_channels.fc1.weight.data
    mesh = pytest.importorskip("torch.distributed.device_mesh").DeviceMesh
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    sharded = DTensor.from_local(weight, mesh("cpu", [0]))
    block.mlp_channels.fc1.weight = nn.Parameter(sharded)


EDITS = {
    "HOOKED_CHILD": lambda block: block.norm1.register_forward_hook(lambda *args: None),
    "PARAMETRIZED": lambda block: parametrize.register_parametrization(
        block.mlp_tokens.fc1, "weight", nn.Identity()
    ),
    "LORA": put("mlp_tokens.fc1", Wrapped),
    "QUANTIZED": put("mlp_channels.fc2", lambda layer: QuantLinear(96, 24)),
    "QUANTIZED tensor": quantize_tensor,
    "SHARDED_CHILD": shard,
    "UNSUPPORTED_ACT": put("mlp_tokens.act", lambda act: nn.SiLU()),
    "UNSUPPORTED_NORM": put("norm2", lambda norm: nn.GroupNorm(1, 16)),
    "UNSUPPORTED_NORM inside": put("mlp_tokens.norm", lambda norm: nn.LayerNorm(12)),
    "UNSUPPORTED_LAYER": put("mlp_tokens.drop1", lambda drop: nn.AlphaDropout(0.1)),
    "DTYPE": put("norm1", lambda norm: norm.double()),
    "DEVICE": lambda block: block.to("meta"),
    "SUBCLASSED": lambda block: setattr(block, "__class__", Derived),
    "SUBCLASSED instance": lambda block: setattr(block, "forward", lambda x: x),
}


@pytest.mark.parametrize("case", EDITS)
def test_blocks_that_cannot_be_served_are_kept_with_a_reason(case):
    model = mixer()
    EDITS[case](model.blocks[1])
    kind = type(model.blocks[1])
    dry = reasons(model)
    reference(model)
    row = shiftmlp.explain(model).rows[1]
    assert (row.action, row.reason) == ("kept", case.split()[0]) and row.sentence
    assert type(model.blocks[1]) is kind and type(model.blocks[0]).__name__ == "FusedMixerBlock"
    assert dry[1] == row.reason
    with pytest.raises(RuntimeError, match=row.reason):
        reference(mixer_with(EDITS[case]), on_unsupported="raise")


def mixer_with(edit) -> nn.Module:
    model = mixer()
    edit(model.blocks[1])
    return model


def test_every_reason_is_of_the_closed_list_and_reached():
    reached = {case.split()[0] for case in EDITS} | {
        # each of these has a test of its own in this file
        "ALREADY_FUSED", "BACKEND_REFUSES", "DISABLED", "DROPOUT_TRAINING", "EXCLUDED",
        "NOT_FASTER", "VERIFY_FAILED",
    }  # fmt: skip
    assert set(REASONS) - reached == {"INPLACE_SHIFT"}  # kept for adapters of published ports


def test_gmixer_is_kept_since_its_mlp_is_gated():
    from timm.layers import GluMlp

    model = mixer(mlp_layer=GluMlp, act_layer=nn.SiLU, mlp_ratio=(1.0, 4.0))
    assert reasons(model) == ["UNSUPPORTED_LAYER"] * 2


def test_our_own_blocks_are_already_fused():
    model = nn.Sequential(shiftmlp.nn.MixerBlock(8, 4))
    assert reasons(shiftmlp.accelerate(model)) == ["ALREADY_FUSED"]


def test_nothing_changes_while_disabled():
    model = mixer()
    with shiftmlp.disabled():
        shiftmlp.accelerate(model)
        assert reasons(model) == ["DISABLED"] * 2
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock


def test_dropout_in_training_runs_the_original():
    model = mixer(proj_drop_rate=0.5)
    original = copy.deepcopy(model)
    reference(model)
    assert reasons(model) == ["DROPOUT_TRAINING"] * 2
    assert ops_called(model) == {"token_mlp", "channel_mlp"}
    assert ops_called(model.train()) == set()
    torch.manual_seed(3)
    wanted = original.train()(images())
    torch.manual_seed(3)
    assert_same_bits(model(images()), wanted)


def test_a_layer_wrapped_or_hooked_afterwards_is_honoured():
    model, original = reference(mixer()), mixer()
    original.load_state_dict(model.state_dict())
    for one in (model, original):
        put("mlp_tokens.fc1", Wrapped)(one.blocks[0])
    assert_same_bits(
        model.blocks[0](torch.ones(1, 16, 24)), original.blocks[0](torch.ones(1, 16, 24))
    )
    assert reasons(model) == ["LORA", None]
    assert reasons(reference(model)) == ["LORA", None]
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock
    fired = []
    model.blocks[1].mlp_tokens.fc2.register_forward_hook(lambda *args: fired.append(1))
    model(images())
    assert fired
