"""Whole vision-MLPs, as published, of plain or of fused blocks."""

from ._registry import create_model, list_models
from ._vision_mlp import VisionMLP
from .s2mlp import s2mlp_deep, s2mlp_wide
from .token_mixing import (
    gmlp_b16,
    gmlp_s16,
    gmlp_ti16,
    mixer_b16,
    mixer_b32,
    mixer_l16,
    mixer_l32,
    mixer_s16,
    mixer_s32,
    resmlp_b24,
    resmlp_s12,
    resmlp_s24,
    resmlp_s36,
)

__all__ = [
    "VisionMLP",
    "create_model",
    "gmlp_b16",
    "gmlp_s16",
    "gmlp_ti16",
    "list_models",
    "mixer_b16",
    "mixer_b32",
    "mixer_l16",
    "mixer_l32",
    "mixer_s16",
    "mixer_s32",
    "resmlp_b24",
    "resmlp_s12",
    "resmlp_s24",
    "resmlp_s36",
    "s2mlp_deep",
    "s2mlp_wide",
]
