"""Whole blocks, drop-in for timm's: same constructor, same state dict, fused forward.

Norm, activation, scale and residual run inside the ops. Two cases differ, both only in training:
with ``drop > 0`` the block runs its plain PyTorch layers, as no op draws dropout; with
``drop_path > 0`` the residual is added after the op instead of inside.

``norm_layer`` makes an nn.LayerNorm over channels, an Affine or an nn.Identity, or is None;
``act_layer`` is nn.GELU (also its tanh form), nn.ReLU, nn.Identity or None. Anything else raises a
TypeError when the block is made.
"""

from torch import Tensor

from . import _fused
from ._fused import Fused, has_active_dropout
from ._plain import (
    PlainMixerBlock,
    PlainResMLPBlock,
    PlainS2Block,
    PlainSpatialGatingBlock,
    PlainSpatialGatingUnit,
)


class MixerBlock(Fused, PlainMixerBlock):
    """MLP-Mixer's block (arXiv 2105.01601), (B, S, C) to (B, S, C).

    Args:
        dim: C.
        seq_len: S.
        mlp_ratio: hidden widths of the token and the channel MLP, in C; default (0.5, 4.0).
        norm_layer: default LayerNorm with eps 1e-6.
        act_layer, drop, drop_path, device, dtype: as in timm's ``MixerBlock``.
        backend: as in ``shiftmlp.functional``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if has_active_dropout(self):
            _fused.check_tokens(self.mlp_tokens.fc1, x)
            return super().forward(x)
        return _fused.mixer_block(self, x, self.backend)


class ResMLPBlock(Fused, PlainResMLPBlock):
    """ResMLP's block (arXiv 2105.03404), (B, S, C) to (B, S, C).

    Args:
        dim: C.
        seq_len: S.
        mlp_ratio: hidden width of the channel MLP, in C; default 4.
        norm_layer: default Affine.
        init_values: of the per-channel scales ls1 and ls2; default 1e-4.
        act_layer, drop, drop_path, device, dtype: as in timm's ``ResBlock``.
        backend: as in ``shiftmlp.functional``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if has_active_dropout(self):
            _fused.check_tokens(self.linear_tokens, x)
            return super().forward(x)
        return _fused.resmlp_block(self, x, self.backend)


class SpatialGatingUnit(Fused, PlainSpatialGatingUnit):
    """gMLP's gate (arXiv 2105.08050), (B, S, 2 C) to (B, S, C).

    Args:
        dim: 2 C.
        seq_len: S.
        norm_layer: over the second half; default LayerNorm with eps 1e-5.
        device, dtype: as in timm's ``SpatialGatingUnit``.
        backend: as in ``shiftmlp.functional``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _fused.gating_unit(self, x, self.backend)


class SpatialGatingBlock(Fused, PlainSpatialGatingBlock):
    """gMLP's block (arXiv 2105.08050), (B, S, C) to (B, S, C). The gate is fused, dropout included.

    Args:
        dim: C.
        seq_len: S.
        mlp_ratio: width before the gate, in C; default 4.
        norm_layer: default LayerNorm with eps 1e-6; inside the gate it is 1e-5 as in timm.
        act_layer, drop, drop_path, device, dtype: as in timm's ``SpatialGatingBlock``.
        backend: as in ``shiftmlp.functional``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _fused.gating_block(self, x, self.backend)


class S2Block(Fused, PlainS2Block):
    """S2-MLP's block (arXiv 2106.07477), (B, H, W, C) to (B, H, W, C), for any map.

    ``x + norm1(mlp_shift(x))``, then ``x + norm2(mlp_channels(x))``; mlp_shift is
    ``fc2(shift(act(fc1(x))))`` of width C, mlp_channels is ``fc2(act(fc1(x)))``.

    Args:
        dim: C.
        mlp_ratio: hidden width of the channel MLP, in C; default 4.
        norm_layer: default LayerNorm with eps 1e-6 (the paper gives none); ``Affine`` as in the
            paper's deep model.
        act_layer, drop, drop_path, device, dtype: as in ``MixerBlock``.
        norm_position: "post", after each MLP, as the paper draws it, or "pre", before it, as most
            ports have it.
        shift: which channels move where; default the paper's.
        backend: as in ``shiftmlp.functional``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if has_active_dropout(self):
            _fused.check_map(x)
            return super().forward(x)
        return _fused.s2_block(self, x, self.backend)
