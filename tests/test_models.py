"""Whole models against timm's and the papers' parameter counts."""

import copy

import pytest
import torch
from modules import assert_all_close_to_rounding, results
from torch import nn

from shiftmlp import models
from shiftmlp.nn import Affine, S2Block
from shiftmlp.nn._plain import PlainS2Block
from shiftmlp.testing import assert_close_to_rounding, assert_same_bits

TIMMS = {
    "mixer_s32": "mixer_s32_224",
    "mixer_s16": "mixer_s16_224",
    "mixer_b32": "mixer_b32_224",
    "mixer_b16": "mixer_b16_224",
    "mixer_l32": "mixer_l32_224",
    "mixer_l16": "mixer_l16_224",
    "resmlp_s12": "resmlp_12_224",
    "resmlp_s24": "resmlp_24_224",
    "resmlp_s36": "resmlp_36_224",
    "gmlp_ti16": "gmlp_ti16_224",
    "gmlp_s16": "gmlp_s16_224",
    "gmlp_b16": "gmlp_b16_224",
}
# Parameters with a head of 1000 classes: what the papers' tables print or should.
COUNTS = {
    "mixer_s32": 19_104_624,
    "mixer_s16": 18_528_264,
    "mixer_b32": 60_293_428,
    "mixer_b16": 59_880_472,
    "mixer_l32": 206_939_264,
    "mixer_l16": 208_196_168,
    "resmlp_s12": 15_350_872,
    "resmlp_s24": 30_020_680,
    "resmlp_s36": 44_690_488,
    "resmlp_b24": 115_736_776,
    "gmlp_ti16": 5_867_328,
    "gmlp_s16": 19_422_656,
    "gmlp_b16": 73_075_392,
    "s2mlp_wide": 71_472_384 + 769_000,
    "s2mlp_deep": 53_532_288 + 385_000,
}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 2, "num_classes": 5}
FAMILIES = ["mixer_s16", "resmlp_s24", "gmlp_ti16", "s2mlp_wide", "s2mlp_deep"]


def small(name, **kwargs):
    """A small model with every parameter random: heads are published as zeros."""
    torch.manual_seed(0)
    model = models.create_model(name, **SMALL | kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(size=(32, 32), **at):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(**at)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.models.mlp_mixer")


def test_every_model_is_counted():
    assert models.list_models() == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    model = models.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    fused = models.create_model(name, device="meta", fused=True)
    assert list(fused.state_dict()) == list(model.state_dict())


def test_the_other_counts_that_papers_print():
    def millions(name, **kwargs):
        model = models.create_model(name, device="meta", **kwargs)
        return round(sum(p.numel() for p in model.parameters()) / 1e6, 2)

    assert millions("resmlp_b24", patch_size=8) == 129.14
    assert millions("s2mlp_wide", num_classes=0) == 71.47
    assert millions("s2mlp_deep", num_classes=0) == 53.53
    deep = models.create_model("s2mlp_deep", num_classes=0, device="meta")
    with_layer_norm = millions("s2mlp_deep", num_classes=0, norm_layer=nn.LayerNorm)
    assert with_layer_norm == 53.53
    assert all(isinstance(block.norm1, Affine) for block in deep.blocks)
    assert isinstance(deep.stem.norm, nn.LayerNorm)


@pytest.mark.parametrize("name", TIMMS)
def test_state_is_timms_at_full_size(timm, name):
    theirs = getattr(timm, TIMMS[name])(device="meta").state_dict()
    ours = models.create_model(name, device="meta").state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


def timms_small(timm, name):
    options = {
        "mixer_s16": {"block_layer": timm.MixerBlock},
        "resmlp_s24": {"block_layer": timm.ResBlock, "norm_layer": timm.Affine, "mlp_ratio": 4},
        "gmlp_ti16": {
            "block_layer": timm.SpatialGatingBlock,
            "mlp_layer": timm.GatedMlp,
            "mlp_ratio": 6,
        },
    }
    return timm.MlpMixer(**SMALL, **options[name])


@pytest.mark.parametrize("name", FAMILIES[:3])
def test_a_model_equals_timms_with_its_checkpoint(timm, name):
    ours, theirs = small(name).double(), timms_small(timm, name).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    fused = models.create_model(name, **SMALL, fused=True, dtype=torch.float64)
    fused.load_state_dict(theirs.state_dict(), strict=True)
    x = images(dtype=torch.float64)
    wanted = results(theirs, x)
    assert_all_close_to_rounding(results(ours, x), wanted)
    assert_all_close_to_rounding(results(fused, x), wanted)
    assert_close_to_rounding(ours.forward_features(x), theirs.forward_features(x))


@pytest.mark.parametrize("name", FAMILIES[:3])
def test_initialisation_is_timms(timm, name, monkeypatch):
    from timm.layers import weight_init

    # The same distribution; how it is drawn differs between versions of torch.
    draw = torch.no_grad()(lambda weight: weight_init._trunc_normal_(weight, 0, 1.0, -2.0, 2.0))
    monkeypatch.setattr(nn.init, "trunc_normal_", draw)
    ours, theirs = models.create_model(name, **SMALL), timms_small(timm, name)
    torch.manual_seed(3)
    models._vision_mlp.init_weights(ours)
    torch.manual_seed(3)
    theirs.init_weights()
    for (key, mine), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        if not key.endswith(("ls1", "ls2")):  # the model's own start, checked below
            assert_close_to_rounding(mine, other)
    assert not ours.head.weight.any()


def test_layer_scale_begins_as_published():
    starts = {"resmlp_s12": 1e-4, "resmlp_s24": 1e-5, "resmlp_s36": 1e-6, "resmlp_b24": 1e-6}
    for name, start in starts.items():
        block = models.create_model(name, **SMALL).blocks[0]
        assert torch.equal(block.ls1, torch.full_like(block.ls1, start))
        assert torch.equal(block.ls2, torch.full_like(block.ls2, start))


@pytest.mark.parametrize("name", ["s2mlp_wide", "s2mlp_deep"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_s2mlp_is_the_papers_formula(name, size):
    model = small(name, dtype=torch.float64)
    fused = models.create_model(name, **SMALL, fused=True, dtype=torch.float64)
    fused.load_state_dict(model.state_dict(), strict=True)
    x = images(size, dtype=torch.float64)

    def formula(model, x):
        x = nn.functional.conv2d(x, model.stem.proj.weight, model.stem.proj.bias, stride=8)
        x = model.stem.norm(x.movedim(1, -1))
        for block in model.blocks:
            c = x.shape[-1] // 4
            h = nn.functional.gelu(block.mlp_shift.fc1(x))
            down, up, right, left = h.split(c, -1)
            down = torch.cat([down[:, :1], down[:, :-1]], 1)
            up = torch.cat([up[:, 1:], up[:, -1:]], 1)
            right = torch.cat([right[:, :, :1], right[:, :, :-1]], 2)
            left = torch.cat([left[:, :, 1:], left[:, :, -1:]], 2)
            h = block.mlp_shift.fc2(torch.cat([down, up, right, left], -1))
            x = x + block.norm1(h)
            h = block.mlp_channels.fc2(nn.functional.gelu(block.mlp_channels.fc1(x)))
            x = x + block.norm2(h)
        return model.head(x.mean((1, 2)))

    assert_close_to_rounding(model(x), formula(model, x))
    assert_all_close_to_rounding(results(fused, x), results(model, x))


def test_s2mlp_takes_the_options_of_its_block():
    model = small("s2mlp_deep", norm_position="pre", norm_layer=None, mlp_ratio=2)
    assert {block.norm_position for block in model.blocks} == {"pre"}
    assert isinstance(model.blocks[0].norm1, nn.Identity)
    assert model.blocks[0].mlp_channels.fc1.out_features == 32
    assert {type(block) for block in model.blocks} == {PlainS2Block}
    assert {type(block) for block in small("s2mlp_deep", fused=True).blocks} == {S2Block}


@pytest.mark.parametrize("name", FAMILIES)
def test_size_words(name):
    model = small(name, in_chans=1, num_classes=0, drop_path_rate=0.25, dtype=torch.float64)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.25, 0.25]
    assert isinstance(model.head, nn.Identity)
    y = model(images(dtype=torch.float64)[:, :1])
    assert y.shape == (2, 16) and y.dtype == torch.float64
    wide = small(name, img_size=(16, 40), patch_size=(8, 4))
    assert wide(images((16, 40))).shape == (2, 5)


def test_a_model_compiles_and_copies():
    model = small("s2mlp_deep", fused=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_all_close_to_rounding(results(compiled, images()), results(model, images()))
    assert_same_bits(copy.deepcopy(model)(images()), model(images()))
    torch._dynamo.reset()


MISTAKES = [
    (lambda: models.create_model("mixer_b_16"), "'mixer_b_16'; near: mixer_b16, "),
    (lambda: models.create_model("s2mlp-deep"), "near: s2mlp_deep"),
    (lambda: models.create_model("vit"), "near: gmlp_b16, gmlp_s16, .*s2mlp_wide"),
    (lambda: small("mixer_s16", img_size=30), r"divisible by patch_size \(8, 8\), got \(30, 30\)"),
    (
        lambda: small("mixer_s16")(images((40, 40))),
        "image must be 32 x 32 pixels, the size that .* were made for, got 40 x 40",
    ),
    (
        lambda: small("resmlp_s12", img_size=(16, 64))(images((64, 16))),
        "16 x 64 pixels.*got 64 x 16",
    ),
    (lambda: small("s2mlp_wide")(images((30, 32))), r"divisible by \(8, 8\), got \(2, 3, 30, 32\)"),
    (
        lambda: small("s2mlp_wide")(images()[:, :2]),
        r"\(B, 3, height, width\).*got \(2, 2, 32, 32\)",
    ),
]


@pytest.mark.parametrize("call, words", MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
