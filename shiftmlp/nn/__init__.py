"""Drop-in modules: timm's constructor words and state dicts, fused forwards."""

from ._layers import Affine
from .blocks import MixerBlock, ResMLPBlock, S2Block, SpatialGatingBlock, SpatialGatingUnit
from .layers import ChannelMlp, ShiftLinear, ShiftMlp, SpatialShift, TokenLinear, TokenMlp

__all__ = [
    "Affine",
    "ChannelMlp",
    "MixerBlock",
    "ResMLPBlock",
    "S2Block",
    "ShiftLinear",
    "ShiftMlp",
    "SpatialGatingBlock",
    "SpatialGatingUnit",
    "SpatialShift",
    "TokenLinear",
    "TokenMlp",
]
