"""The blocks in plain PyTorch, as people write them, with timm's attribute names and defaults.

The fused blocks are these with another ``forward``; so a class can be swapped for the other, and
the state dict of one is the state dict of the other.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ..shift import Shift
from ._layers import Affine, GatedMlp, Mlp, PlainShiftMlp, drop_path_or_identity

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def _norm(norm_layer, dim: int, **at) -> nn.Module:
    return nn.Identity() if norm_layer is None else norm_layer(dim, **at)


class PlainMixerBlock(nn.Module):
    """MLP-Mixer's block (arXiv 2105.01601) on (B, S, C); timm's ``MixerBlock``."""

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float | tuple[float, float] = (0.5, 4.0),
        mlp_layer=Mlp,
        norm_layer=LayerNorm,
        act_layer=nn.GELU,
        drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        inside = {"act_layer": act_layer, "drop": drop, **at}
        tokens, channels = mlp_ratio if isinstance(mlp_ratio, tuple) else (mlp_ratio, mlp_ratio)
        self.norm1 = _norm(norm_layer, dim, **at)
        self.mlp_tokens = mlp_layer(seq_len, int(tokens * dim), **inside)
        self.drop_path = drop_path_or_identity(drop_path)
        self.norm2 = _norm(norm_layer, dim, **at)
        self.mlp_channels = mlp_layer(dim, int(channels * dim), **inside)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mlp_tokens(self.norm1(x).mT).mT)
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class PlainResMLPBlock(nn.Module):
    """ResMLP's block (arXiv 2105.03404) on (B, S, C); timm's ``ResBlock``."""

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float = 4,
        mlp_layer=Mlp,
        norm_layer=Affine,
        act_layer=nn.GELU,
        init_values: float = 1e-4,
        drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        self.norm1 = _norm(norm_layer, dim, **at)
        self.linear_tokens = nn.Linear(seq_len, seq_len, **at)
        self.drop_path = drop_path_or_identity(drop_path)
        self.norm2 = _norm(norm_layer, dim, **at)
        self.mlp_channels = mlp_layer(
            dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop, **at
        )
        self.ls1 = nn.Parameter(init_values * torch.ones(dim, **at))
        self.ls2 = nn.Parameter(init_values * torch.ones(dim, **at))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1 * self.linear_tokens(self.norm1(x).mT).mT)
        return x + self.drop_path(self.ls2 * self.mlp_channels(self.norm2(x)))


class PlainSpatialGatingUnit(nn.Module):
    """gMLP's gate (arXiv 2105.08050), (B, S, 2 C) to (B, S, C); timm's ``SpatialGatingUnit``."""

    def __init__(self, dim: int, seq_len: int, norm_layer=nn.LayerNorm, device=None, dtype=None):
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim must be even, a half gates the other; got {dim}")
        at = {"device": device, "dtype": dtype}
        self.norm = _norm(norm_layer, dim // 2, **at)
        self.proj = nn.Linear(seq_len, seq_len, **at)
        self.init_weights()

    def init_weights(self) -> None:
        """The gate opens at one: the block begins as an MLP that mixes no tokens."""
        nn.init.normal_(self.proj.weight, std=1e-6)
        nn.init.ones_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v).mT).mT


class PlainSpatialGatingBlock(nn.Module):
    """gMLP's block (arXiv 2105.08050) on (B, S, C); timm's ``SpatialGatingBlock``."""

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float = 4,
        mlp_layer=GatedMlp,
        norm_layer=LayerNorm,
        act_layer=nn.GELU,
        drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        gate = partial(PlainSpatialGatingUnit, seq_len=seq_len)
        self.norm = _norm(norm_layer, dim, **at)
        self.mlp_channels = mlp_layer(
            dim, int(dim * mlp_ratio), act_layer=act_layer, gate_layer=gate, drop=drop, **at
        )
        self.drop_path = drop_path_or_identity(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp_channels(self.norm(x)))


class PlainS2Block(nn.Module):
    """S2-MLP's block (arXiv 2106.07477) on (B, H, W, C)."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4,
        norm_layer=LayerNorm,
        act_layer=nn.GELU,
        norm_position: str = "post",
        shift: Shift = Shift.S2,
        drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if norm_position not in ("post", "pre"):
            raise ValueError(f"norm_position must be 'post' or 'pre', got {norm_position!r}")
        at = {"device": device, "dtype": dtype}
        inside = {"act_layer": act_layer, "drop": drop, **at}
        self.norm_position = norm_position
        self.norm1 = _norm(norm_layer, dim, **at)
        self.mlp_shift = PlainShiftMlp(dim, dim, shift=shift, **inside)
        self.drop_path = drop_path_or_identity(drop_path)
        self.norm2 = _norm(norm_layer, dim, **at)
        self.mlp_channels = Mlp(dim, int(dim * mlp_ratio), **inside)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_position == "post":
            x = x + self.drop_path(self.norm1(self.mlp_shift(x)))
            return x + self.drop_path(self.norm2(self.mlp_channels(x)))
        x = x + self.drop_path(self.mlp_shift(self.norm1(x)))
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))

    def extra_repr(self) -> str:
        return f"norm_position={self.norm_position!r}"
