"""S2-MLP (arXiv 2106.07477). No official code or weights exist; the paper's text is what counts.

A patch embedding with LayerNorm (section 3.2), the blocks, the mean over the patches, the head; no
norm after the last block. The blocks shift maps of any size, so ``img_size`` binds nothing.
Every function takes the keyword arguments of ``shiftmlp.create_model``, and those of
``shiftmlp.nn.S2Block``: ``norm_layer, norm_position, shift, act_layer, mlp_ratio, drop``.
"""

from torch import nn

from ..nn import Affine, S2Block
from ..nn._plain import LayerNorm, PlainS2Block
from ._registry import register
from ._vision_mlp import PatchEmbed, VisionMLP, grid


@register
def s2mlp_wide(**kwargs) -> nn.Module:
    """S2-MLP-wide, 71.47 M parameters without the head; the paper prints 71 M."""
    return _build(**{"embed_dim": 768, "num_blocks": 12} | kwargs)


@register
def s2mlp_deep(**kwargs) -> nn.Module:
    """S2-MLP-deep, 53.53 M parameters without the head; the paper prints 51 M.

    The blocks' norms are ResMLP's Affine (section 4.1), of as many parameters as LayerNorm.
    The paper's own formula gives 53.5 million too: its 51 M is that number over 2**20.
    """
    return _build(**{"embed_dim": 384, "num_blocks": 36, "norm_layer": Affine} | kwargs)


def _build(
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
    grid(img_size, patch_size)
    stem = PatchEmbed(patch_size, in_chans, embed_dim, norm_layer=LayerNorm, **at)
    block_layer = S2Block if fused else PlainS2Block
    of_blocks |= {"drop_path": drop_path_rate, **at}
    blocks = [block_layer(embed_dim, **of_blocks) for _ in range(num_blocks)]
    return VisionMLP(blocks, stem, nn.Identity(), num_classes, None, **at)
