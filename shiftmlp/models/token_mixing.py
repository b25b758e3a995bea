"""MLP-Mixer (2105.01601), ResMLP (2105.03404) and gMLP (2105.08050), with timm's state keys.

Every function takes the keyword arguments of ``shiftmlp.create_model``.
"""

from functools import partial

from torch import nn

from ..nn import Affine, MixerBlock, ResMLPBlock, SpatialGatingBlock
from ..nn._plain import LayerNorm, PlainMixerBlock, PlainResMLPBlock, PlainSpatialGatingBlock
from ._registry import register
from ._vision_mlp import PatchEmbed, VisionMLP, grid, pair


def _build(
    block_layers: tuple[type, type],
    norm_layer,
    *,
    embed_dim: int,
    num_blocks: int,
    patch_size=16,
    img_size=224,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    fused: bool = False,
    device=None,
    dtype=None,
    **of_blocks,
) -> VisionMLP:
    at = {"device": device, "dtype": dtype}
    H, W = grid(img_size, patch_size)
    stem = PatchEmbed(patch_size, in_chans, embed_dim, **at)
    block_layer = partial(
        block_layers[fused], embed_dim, H * W, drop_path=drop_path_rate, **of_blocks, **at
    )
    blocks = [block_layer() for _ in range(num_blocks)]
    return VisionMLP(blocks, stem, norm_layer(embed_dim, **at), num_classes, pair(img_size), **at)


def _mixer(kwargs: dict, **size) -> nn.Module:
    return _build((PlainMixerBlock, MixerBlock), LayerNorm, **size | kwargs)


def _resmlp(kwargs: dict, **size) -> nn.Module:
    return _build((PlainResMLPBlock, ResMLPBlock), Affine, **size | kwargs)


def _gmlp(kwargs: dict, **size) -> nn.Module:
    size |= {"num_blocks": 30, "mlp_ratio": 6}
    return _build((PlainSpatialGatingBlock, SpatialGatingBlock), LayerNorm, **size | kwargs)


@register
def mixer_s32(**kwargs) -> nn.Module:
    """Mixer-S/32, 19.10 M parameters; timm's mixer_s32_224."""
    return _mixer(kwargs, patch_size=32, num_blocks=8, embed_dim=512)


@register
def mixer_s16(**kwargs) -> nn.Module:
    """Mixer-S/16, 18.53 M parameters; timm's mixer_s16_224."""
    return _mixer(kwargs, num_blocks=8, embed_dim=512)


@register
def mixer_b32(**kwargs) -> nn.Module:
    """Mixer-B/32, 60.29 M parameters; timm's mixer_b32_224."""
    return _mixer(kwargs, patch_size=32, num_blocks=12, embed_dim=768)


@register
def mixer_b16(**kwargs) -> nn.Module:
    """Mixer-B/16, 59.88 M parameters; timm's mixer_b16_224."""
    return _mixer(kwargs, num_blocks=12, embed_dim=768)


@register
def mixer_l32(**kwargs) -> nn.Module:
    """Mixer-L/32, 206.94 M parameters; timm's mixer_l32_224."""
    return _mixer(kwargs, patch_size=32, num_blocks=24, embed_dim=1024)


@register
def mixer_l16(**kwargs) -> nn.Module:
    """Mixer-L/16, 208.20 M parameters; timm's mixer_l16_224."""
    return _mixer(kwargs, num_blocks=24, embed_dim=1024)


@register
def resmlp_s12(**kwargs) -> nn.Module:
    """ResMLP-S12, 15.35 M parameters; timm's resmlp_12_224."""
    return _resmlp(kwargs, num_blocks=12, embed_dim=384)


@register
def resmlp_s24(**kwargs) -> nn.Module:
    """ResMLP-S24, 30.02 M parameters; timm's resmlp_24_224."""
    return _resmlp(kwargs, num_blocks=24, embed_dim=384, init_values=1e-5)


@register
def resmlp_s36(**kwargs) -> nn.Module:
    """ResMLP-S36, 44.69 M parameters; timm's resmlp_36_224."""
    return _resmlp(kwargs, num_blocks=36, embed_dim=384, init_values=1e-6)


@register
def resmlp_b24(**kwargs) -> nn.Module:
    """ResMLP-B24 as in the paper's table, 115.74 M parameters.

    The released weights, timm's resmlp_big_24_224, are those of ``patch_size=8``, 129.14 M.
    """
    return _resmlp(kwargs, num_blocks=24, embed_dim=768, init_values=1e-6)


@register
def gmlp_ti16(**kwargs) -> nn.Module:
    """gMLP-Ti/16, 5.87 M parameters; timm's gmlp_ti16_224."""
    return _gmlp(kwargs, embed_dim=128)


@register
def gmlp_s16(**kwargs) -> nn.Module:
    """gMLP-S/16, 19.42 M parameters; timm's gmlp_s16_224."""
    return _gmlp(kwargs, embed_dim=256)


@register
def gmlp_b16(**kwargs) -> nn.Module:
    """gMLP-B/16, 73.08 M parameters; timm's gmlp_b16_224."""
    return _gmlp(kwargs, embed_dim=512)
