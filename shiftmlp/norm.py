"""The two norms that vision-MLPs put around an op, as values: ``LayerNorm`` and ``Affine``."""

from typing import NamedTuple

from torch import Tensor


class LayerNorm(NamedTuple):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis, var biased.

    Statistics are kept in float32 at least. ``weight`` and ``bias`` are (C,) or None.
    timm and the JAX Mixer use eps 1e-6, ``torch.nn.LayerNorm`` and gMLP's gating unit 1e-5.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-6


class Affine(NamedTuple):
    """``alpha * x + beta`` per channel, ResMLP's norm (arXiv 2105.03404).

    ``alpha`` is (C,) or timm's (1, 1, C); ``beta`` likewise, or None.
    """

    alpha: Tensor
    beta: Tensor | None = None
