"""The checks of ``functional``: each names the argument, what was wanted and what came."""

import torch
from torch import Tensor

from .norm import Affine, LayerNorm
from .shift import Shift

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = {None: "none", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "relu": "relu"}
NO_NORM = ("none", None, None, 0.0)


def check_input(name: str, x: Tensor, axes: str) -> tuple[torch.dtype, torch.device]:
    """x is dense, floating point, and its last axes are those named, as in "S C".

    Returns what the other tensors have to share with it.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(x).__name__}")
    dtype = x.dtype
    if dtype not in DTYPES:
        raise TypeError(f"{name} must be floating point (64, 32, 16 bit or bfloat16), got {dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {x.layout}")
    if x.dim() < axes.count(" ") + 1:
        wanted = "(..., " + axes.replace(" ", ", ") + ")"
        raise ValueError(f"{name} must be {wanted}, got {tuple(x.shape)}")
    return dtype, x.device


def check(name: str, tensor: Tensor | None, wanted: tuple[int, ...], like: tuple) -> None:
    """``tensor`` is None or has the wanted shape and the input's dtype and device."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.shape != wanted:
        raise ValueError(f"{name} must be {tuple(wanted)}, got {tuple(tensor.shape)}")
    _check_like(name, tensor, like)


def check_weight(name: str, weight: Tensor, out: str, mixed: int, like: tuple) -> int:
    """``weight`` is (out, mixed) like ``nn.Linear``'s, with ``out`` free; returns its size."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(weight).__name__}")
    if weight.dim() != 2 or weight.shape[1] != mixed:
        raise ValueError(f"{name} must be ({out}, {mixed}), got {tuple(weight.shape)}")
    _check_like(name, weight, like)
    return weight.shape[0]


def _check_like(name: str, tensor: Tensor, like: tuple) -> None:
    dtype, device = like
    if tensor.dtype is not dtype:
        mixed = tensor.dtype in DTYPES and torch.is_autocast_enabled(device.type)
        if not mixed:
            raise TypeError(
                f"{name} must be {dtype} like the input, got {tensor.dtype}; use torch.autocast for"
                " mixed precision"
            )
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the input, got {tensor.device}")


def check_activation(activation: str | None) -> str:
    try:
        return ACTIVATIONS[activation]
    except (KeyError, TypeError):
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be one of {known}, got {activation!r}") from None


def check_shift(shift: Shift) -> str:
    if not isinstance(shift, Shift):
        raise TypeError(f"shift must be a shiftmlp.Shift, got {type(shift).__name__}")
    return shift.spec


def check_norm(name: str, norm, C: int, like: tuple) -> tuple:
    """``(kind, weight, bias, eps)`` as the ops take it; weights (1, 1, C) become (C,)."""
    if norm is None:
        return NO_NORM
    if isinstance(norm, LayerNorm):
        kind, weight, bias, eps = "layer_norm", norm.weight, norm.bias, norm.eps
        names = f"{name}.weight", f"{name}.bias"
        if not isinstance(eps, (int, float)) or not eps >= 0:
            raise ValueError(f"{name}.eps must be a number >= 0, got {eps!r}")
    elif isinstance(norm, Affine):
        kind, weight, bias, eps = "affine", _flat(norm.alpha), _flat(norm.beta), 0.0
        names = f"{name}.alpha", f"{name}.beta"
        if weight is None:
            raise TypeError(f"{names[0]} must be a Tensor, got None")
    else:
        raise TypeError(
            f"{name} must be shiftmlp.LayerNorm, shiftmlp.Affine or None, got {type(norm).__name__}"
        )
    shape = (C,)
    check(names[0], weight, shape, like)
    check(names[1], bias, shape, like)
    return kind, weight, bias, float(eps)


def _flat(weight):
    """timm stores ResMLP's affine as (1, 1, C)."""
    if isinstance(weight, Tensor) and weight.dim() == 3 and weight.shape[:2] == (1, 1):
        return weight.reshape(-1)
    return weight
