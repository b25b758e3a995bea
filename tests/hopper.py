"""Calls of the kernels of csrc/cuda/*_sm90.cu, in the emulator."""

import emulator
import torch
from emulator import fenced
from torch import Tensor


def moments(x: Tensor, eps: float) -> list[Tensor]:
    """LayerNorm's mean and 1 / deviation of every token, between NaNs."""
    deviation = (x.double().var(-1, unbiased=False) + eps).sqrt()
    return [fenced(t.float()) for t in (x.double().mean(-1), 1 / deviation)]


def tokens(library, x, norm_weight, norm_bias, scale, residual, stats, weight) -> tuple:
    """What both kernels are given, and y. Nothing is kept alive for it but y."""
    y = fenced(x.new_full((len(x), len(weight), x.shape[2]), float("nan")))
    mean, rstd = stats or (None, None)
    given = library.Tokens(
        x=x, mean=mean, rstd=rstd, norm_weight=norm_weight, norm_bias=norm_bias, scale=scale,
        residual=residual, y=y,
    )  # fmt: skip
    return given, y


def token_linear(
    library, seed, x, norm, norm_weight, norm_bias, eps, weight, bias, scale, residual, stats=None
) -> Tensor:
    """The kernel's result; ``stats`` in the place of LayerNorm's mean and 1 / deviation."""
    if norm == "layer_norm" and stats is None:
        stats = moments(x, eps)
    given, y = tokens(library, x, norm_weight, norm_bias, scale, residual, stats, weight)
    emulator.run(library.token_linear_sm90, seed, y, given, weight, bias)
    return y


def token_mlp(
    library, seed, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    scale, residual, stats=None,
) -> Tensor:  # fmt: skip
    """The same of two linears."""
    if norm == "layer_norm" and stats is None:
        stats = moments(x, eps)
    given, y = tokens(library, x, norm_weight, norm_bias, scale, residual, stats, w2)
    size = library.token_mlp_workspace_bytes(given, w1)
    workspace = fenced(torch.full((size // 4,), float("nan")))
    emulator.run(library.token_mlp_sm90, seed, y, given, w1, b1, w2, b2, activation, workspace)
    assert emulator.fence_stands(workspace), f"seed {seed}: written outside of the workspace"
    return y


def token_mlp_backward(
    library, seed, dy, x, norm, norm_weight, norm_bias, w1, b1, w2, activation, scale, stats, normed
) -> dict[str, Tensor]:  # fmt: skip
    """Its results by name, of which the last three are summed over their parts."""
    (B, S, C), D = x.shape, len(w1)
    shapes = {"hidden": (B, D, C), "dhidden": (B, D, C), "dx": (B, S, C)}
    parts = {name: (B, C) for name in ("dnorm_weight", "dnorm_bias") if norm != "none"}
    parts["db1"] = (B * -(-C // 64) * 4, D)
    made = {name: fenced(x.new_full(shape, float("nan"))) for name, shape in shapes.items()}
    made |= {name: fenced(torch.full(shape, float("nan"))) for name, shape in parts.items()}
    mean, rstd = stats or (None, None)
    given = library.Tokens(
        x=x, mean=mean, rstd=rstd, norm_weight=norm_weight, norm_bias=norm_bias, scale=scale,
        residual=None, y=dy,
    )  # fmt: skip
    size = library.token_mlp_workspace_bytes(given, w1)
    workspace = fenced(torch.full((size // 4,), float("nan")))
    library.token_mlp_backward_sm90(
        seed, given, w1, b1, w2, activation, workspace, dy, normed, *(made[n] for n in shapes),
        made.get("dnorm_weight"), made.get("dnorm_bias"), made["db1"],
    )  # fmt: skip
    for name, t in {**made, "workspace": workspace}.items():
        assert emulator.fence_stands(t), f"seed {seed}: written outside of {name}"
    return {name: t.sum(0) if name in parts else t for name, t in made.items()}
