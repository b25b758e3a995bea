"""The parts that plain blocks are made of, with timm's attribute names."""

import torch
from torch import Tensor, nn

from .._checks import check_shift
from ..ops.spatial_shift.reference import shift_map
from ..shift import Shift


class Affine(nn.Module):
    """``alpha * x + beta`` per channel, ResMLP's norm; (1, 1, C) as in timm's checkpoints."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)

    def extra_repr(self) -> str:
        return str(self.alpha.shape[-1])


class DropPath(nn.Module):
    """While training, drops a sample's whole branch; those kept are divided by 1 - drop_prob."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        if not 0 <= drop_prob <= 1:
            raise ValueError(f"drop_prob must be between 0 and 1, got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_prob):
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (kept / keep if keep else kept)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


def drop_path_or_identity(drop_prob: float) -> nn.Module:
    return DropPath(drop_prob) if drop_prob else nn.Identity()


class Mlp(nn.Module):
    """``fc2(act(fc1(x)))`` over the last axis, dropout after the activation and after fc2."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer=nn.GELU,
        bias: bool = True,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        hidden_features = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden_features, bias=bias, **at)
        self.act = act_layer() if act_layer is not None else nn.Identity()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_features, out_features or in_features, bias=bias, **at)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))


class PlainShiftMlp(Mlp):
    """``fc2(shift(act(fc1(x))))`` on (B, H, W, C)."""

    def __init__(self, *args, shift: Shift = Shift.S2, **kwargs):
        super().__init__(*args, **kwargs)
        check_shift(shift)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(shift_map(x, self.shift)))

    def extra_repr(self) -> str:
        return f"shift={self.shift.spec!r}"


class GatedMlp(nn.Module):
    """``fc2(gate(act(fc1(x))))``, where the gate halves the width."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        act_layer=nn.GELU,
        gate_layer=nn.Identity,
        bias: bool = True,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(in_features, hidden_features, bias=bias, **at)
        self.act = act_layer() if act_layer is not None else nn.Identity()
        self.drop1 = nn.Dropout(drop)
        self.gate = gate_layer(hidden_features, **at)
        self.fc2 = nn.Linear(hidden_features // 2, out_features or in_features, bias=bias, **at)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.drop1(self.act(self.fc1(x))))
        return self.drop2(self.fc2(x))
