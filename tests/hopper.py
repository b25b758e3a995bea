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
