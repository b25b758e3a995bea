"""Single layers: a shift, a linear layer over channels or tokens, an MLP over either."""

from torch import Tensor, nn

from .. import functional as SF
from .._checks import check_shift
from ..shift import Shift
from ._fused import Fused, activation_name, check_tokens, has_active_dropout, linears
from ._layers import Mlp, PlainShiftMlp


class SpatialShift(Fused, nn.Module):
    """Moves channel groups over the map: (B, H, W, C) to (B, H, W, C).

    Args:
        shift: which group moves where, and what enters at the border.
        backend: as in ``shiftmlp.functional``.
    """

    def __init__(self, shift: Shift = Shift.S2, *, backend: str = "auto"):
        super().__init__(backend=backend)
        check_shift(shift)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return SF.spatial_shift(x, self.shift, backend=self.backend)

    def extra_repr(self) -> str:
        return f"shift={self.shift.spec!r}, {super().extra_repr()}"


class ShiftLinear(Fused, nn.Linear):
    """``nn.Linear`` over the channels of a shifted map: (B, H, W, C) to (B, H, W, O).

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``; the same state dict.
        shift: which group moves where, and what enters at the border.
        backend: as in ``shiftmlp.functional``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        shift: Shift = Shift.S2,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_features, out_features, bias=bias, backend=backend, device=device, dtype=dtype
        )
        check_shift(shift)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return SF.shift_linear(x, self.weight, self.bias, shift=self.shift, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, shift={self.shift.spec!r}"


class TokenLinear(Fused, nn.Linear):
    """``nn.Linear`` over tokens, without a transpose: (B, S, C) to (B, S_out, C).

    Args:
        in_features, out_features: S and S_out.
        bias, device, dtype: as in ``nn.Linear``; the same state dict.
        backend: as in ``shiftmlp.functional``.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(self, x)
        return SF.token_linear(x, self.weight, self.bias, backend=self.backend)


class ChannelMlp(Fused, Mlp):
    """``fc2(act(fc1(x)))`` over channels: (..., C) to (..., O).

    Args:
        in_features, hidden_features, out_features, act_layer, bias, drop, device, dtype: as in
            timm's ``Mlp``; the same state dict. act_layer is nn.GELU, nn.ReLU, nn.Identity or None.
        backend: as in ``shiftmlp.functional``.

    While dropout is in force (``drop > 0`` in training) the plain PyTorch layers run.
    """

    def forward(self, x: Tensor) -> Tensor:
        if has_active_dropout(self):
            return super().forward(x)
        activation = activation_name(self.act)
        return SF.channel_mlp(x, *linears(self), activation=activation, backend=self.backend)


class TokenMlp(Fused, Mlp):
    """``fc2(act(fc1(x)))`` over tokens, without a transpose: (B, S, C) to (B, S_out, C).

    Args:
        in_features, hidden_features, out_features: S, the hidden width, S_out.
        act_layer, bias, drop, device, dtype, backend: as in ``ChannelMlp``.

    While dropout is in force (``drop > 0`` in training) the plain PyTorch layers run.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(self.fc1, x)
        if has_active_dropout(self):
            return super().forward(x.mT).mT.contiguous()
        activation = activation_name(self.act)
        return SF.token_mlp(x, *linears(self), activation=activation, backend=self.backend)


class ShiftMlp(Fused, PlainShiftMlp):
    """``fc2(shift(act(fc1(x))))``, the S2-MLP sub-block: (B, H, W, C) to (B, H, W, O).

    Args:
        in_features, hidden_features, out_features, act_layer, bias, drop, device, dtype, backend:
            as in ``ChannelMlp``.
        shift: which group moves where, and what enters at the border.

    While dropout is in force (``drop > 0`` in training) the plain PyTorch layers run.
    """

    def forward(self, x: Tensor) -> Tensor:
        if has_active_dropout(self):
            return super().forward(x)
        activation = activation_name(self.act)
        return SF.shift_mlp(
            x, *linears(self), shift=self.shift, activation=activation, backend=self.backend
        )
