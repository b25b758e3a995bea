"""ResMLP's block: timm's, and our plain one."""

from ..nn._fused import resmlp_block
from ._family import Family

family = Family(
    home=__name__,
    originals=("timm.models.mlp_mixer.ResBlock", "shiftmlp.nn._plain.PlainResMLPBlock"),
    forward=resmlp_block,
    mlps=("mlp_channels",),
    norms=("norm1", "norm2"),
    sample=lambda block: (2, block.linear_tokens.in_features, block.mlp_channels.fc1.in_features),
    linears=("linear_tokens",),
)
__getattr__ = family.swapped_class
