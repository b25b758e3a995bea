"""MLP-Mixer's block: timm's, and our plain one."""

from ..nn._fused import mixer_block
from ._family import Family

family = Family(
    home=__name__,
    originals=("timm.models.mlp_mixer.MixerBlock", "shiftmlp.nn._plain.PlainMixerBlock"),
    forward=mixer_block,
    mlps=("mlp_tokens", "mlp_channels"),
    norms=("norm1", "norm2"),
    sample=lambda block: (2, block.mlp_tokens.fc1.in_features, block.mlp_channels.fc1.in_features),
)
__getattr__ = family.swapped_class
