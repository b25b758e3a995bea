"""The forward of every block as fused calls, on any block that has timm's attribute names.

Our own blocks and ``shiftmlp.accelerate`` both call these. Parameters are read from the block at
each call, so ``functional_call``, ``.to()`` and swapped classes need nothing more.
"""

import math

from torch import Tensor, nn

from .. import functional as SF
from .._settings import check_backend
from ..norm import Affine, LayerNorm

MLPS = ("mlp_tokens", "mlp_shift", "mlp_channels")
NORMS = ("norm", "norm1", "norm2")


def mixer_block(block: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    """MLP-Mixer's block on (..., S, C)."""
    check_tokens(block.mlp_tokens.fc1, x)
    for op, norm, mlp in (
        (SF.token_mlp, block.norm1, block.mlp_tokens),
        (SF.channel_mlp, block.norm2, block.mlp_channels),
    ):
        x = _half(op, x, mlp, block.drop_path, norm=norm_value(norm), backend=backend)
    return x


def resmlp_block(block: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    """ResMLP's block on (..., S, C)."""
    linear, drop_path = block.linear_tokens, block.drop_path
    check_tokens(linear, x)
    inside = _is_inert(drop_path)
    y = SF.token_linear(
        x, linear.weight, linear.bias, norm=norm_value(block.norm1), scale=block.ls1,
        residual=x if inside else None, backend=backend,
    )  # fmt: skip
    x = y if inside else x + drop_path(y)
    norm = norm_value(block.norm2)
    return _half(
        SF.channel_mlp,
        x,
        block.mlp_channels,
        drop_path,
        norm=norm,
        scale=block.ls2,
        backend=backend,
    )


def s2_block(block: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    """S2-MLP's block on (B, H, W, C)."""
    check_map(x)
    where = "post_norm" if block.norm_position == "post" else "norm"
    norm1, norm2 = {where: norm_value(block.norm1)}, {where: norm_value(block.norm2)}
    mlp, drop_path = block.mlp_shift, block.drop_path
    x = _half(SF.shift_mlp, x, mlp, drop_path, shift=mlp.shift, backend=backend, **norm1)
    return _half(SF.channel_mlp, x, block.mlp_channels, drop_path, backend=backend, **norm2)


def gating_block(block: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    """gMLP's block on (..., S, C). Only the gating unit is fused, so dropout stays as it is."""
    mlp = block.mlp_channels
    check_tokens(mlp.gate.proj, x)
    y = mlp.drop1(mlp.act(mlp.fc1(block.norm(x))))
    y = mlp.drop2(mlp.fc2(gating_unit(mlp.gate, y, backend)))
    return x + block.drop_path(y)


def gating_unit(unit: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    """gMLP's spatial gating on (..., S, 2 C): the first half times the mixed second half."""
    check_tokens(unit.proj, x)
    u, v = x.chunk(2, dim=-1)
    proj = unit.proj
    return SF.token_gate(u, v, proj.weight, proj.bias, norm=norm_value(unit.norm), backend=backend)


def _half(op, x: Tensor, mlp: nn.Module, drop_path: nn.Module, **given) -> Tensor:
    """``x + drop_path(op(x))``; the op adds x itself unless paths are being dropped."""
    activation = activation_name(mlp.act)
    if _is_inert(drop_path):
        return op(x, *linears(mlp), activation=activation, residual=x, **given)
    return x + drop_path(op(x, *linears(mlp), activation=activation, **given))


def linears(mlp: nn.Module) -> tuple:
    """``(w1, b1, w2, b2)``, as the ops take them."""
    fc1, fc2 = mlp.fc1, mlp.fc2
    return fc1.weight, fc1.bias, fc2.weight, fc2.bias


def _is_inert(drop_path: nn.Module) -> bool:
    if isinstance(drop_path, nn.Identity):
        return True
    if hasattr(drop_path, "drop_prob"):
        return not (drop_path.training and drop_path.drop_prob)
    return False


def has_active_dropout(block: nn.Module) -> bool:
    """Dropout inside an MLP is in force. The ops draw none, so the plain forward has to run."""
    for mlp in _mlps(block).values():
        for name in ("drop1", "drop2"):
            drop = mlp._modules[name]
            if drop.training and getattr(drop, "p", 0.0) > 0:
                return True
    return False


def _mlps(block: nn.Module) -> dict[str, nn.Module]:
    """The MLPs of a block by name, or the block where it is one itself."""
    # Asked at every call: _modules goes around the slow attribute lookup of nn.Module.
    parts = block._modules
    if "fc1" in parts:
        return {type(block).__name__: block}
    return {name: parts[name] for name in MLPS if name in parts}


def norm_value(module: nn.Module | None) -> LayerNorm | Affine | None:
    """What a norm module computes, as a value; its parameters are not copied.

    Raises:
        TypeError: no op computes this norm.
    """
    if module is None or isinstance(module, nn.Identity):
        return None
    if _is(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return LayerNorm(module.weight, module.bias, module.eps)
    # timm's and DeiT's classes are known by name: the package does not depend on either.
    if type(module).__name__ == "Affine" and set(module._parameters) == {"alpha", "beta"}:
        return Affine(module.alpha, module.beta)
    raise TypeError(
        "norm_layer must make nn.LayerNorm over the last axis, ResMLP's Affine or nn.Identity, got "
        f"{_described(module)}"
    )


def activation_name(module: nn.Module | None) -> str | None:
    """An activation module's name among the ops' activations.

    Raises:
        TypeError: no op computes this activation.
    """
    if module is None or isinstance(module, nn.Identity):
        return None
    if _is(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if _is(module, nn.ReLU):
        return "relu"
    raise TypeError(
        "act_layer must make nn.GELU (erf or tanh), nn.ReLU or nn.Identity, got "
        f"{_described(module)}"
    )


def _is(module: nn.Module, cls: type) -> bool:
    """A subclass with a forward of its own computes something else (timm's LayerNorm2d)."""
    return isinstance(module, cls) and type(module).forward is cls.forward


def _described(module: nn.Module) -> str:
    return repr(module).splitlines()[0]


def check_tokens(linear: nn.Linear, x: Tensor) -> None:
    """The tokens are as many as the weights over tokens were made for."""
    S, shape = linear.in_features, x.shape
    if len(shape) < 2 or shape[-2] == S:
        return
    raise ValueError(
        f"the token-mixing weights were made for {_tokens(S, pixels=True)}, got "
        f"{_tokens(shape[-2])}"
    )


def check_map(x: Tensor) -> None:
    """x has a batch and a map: in tokens (B, S, C), B would be taken for H."""
    if x.dim() != 4:
        raise ValueError(f"x must be (B, H, W, C), got {tuple(x.shape)}")


def _tokens(S: int, pixels: bool = False) -> str:
    side = math.isqrt(S)
    if side * side != S or side == 0:
        return f"{S} tokens"
    if not pixels:
        return f"{S} tokens ({side} x {side})"
    # A block does not know its patch. Published models take 224 pixels where that divides.
    patch = 224 // side if 224 % side == 0 else 16
    image = side * patch
    return f"{S} tokens ({side} x {side}, as of {image} x {image} pixels at patch {patch})"


def check_supported(block: nn.Module) -> None:
    """Every norm, activation and linear layer of ``block`` is one that the ops compute.

    Raises:
        TypeError: names what is not, and what is supported.
    """
    for name in NORMS:
        norm_value(getattr(block, name, None))
    for name, mlp in _mlps(block).items():
        _check_mlp(name, mlp)


def _check_mlp(name: str, mlp: nn.Module) -> None:
    for part in ("fc1", "act", "drop1", "fc2", "drop2"):
        if not hasattr(mlp, part):
            found = f"{type(mlp).__name__} has no {part}"
            raise TypeError(f"{name} must have fc1, act, drop1, fc2 and drop2, {found}")
    for part in (mlp.fc1, mlp.fc2):
        if not _is(part, nn.Linear):
            raise TypeError(f"{name} must be made of nn.Linear, got {_described(part)}")
    if norm_value(getattr(mlp, "norm", None)) is not None:
        raise TypeError(f"{name} must have no norm of its own, got {_described(mlp.norm)}")
    gate = getattr(mlp, "gate", None)
    if gate is not None and not isinstance(gate, nn.Identity):
        norm_value(gate.norm)
        return
    activation_name(mlp.act)
    if mlp.fc1.out_features != mlp.fc2.in_features:
        raise TypeError(f"{name} must be fc2(act(fc1(x))), got {type(mlp).__name__}")


class Fused:
    """What the fused modules share: their ``backend``."""

    backend = "auto"  # also of a plain block whose class was swapped for a fused one

    def __init__(self, *args, backend: str = "auto", **kwargs):
        super().__init__(*args, **kwargs)
        self.backend = check_backend(backend)
        check_supported(self)

    def extra_repr(self) -> str:
        sizes = super().extra_repr()
        return f"{sizes}, backend={self.backend!r}" if sizes else f"backend={self.backend!r}"
