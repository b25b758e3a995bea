"""The MLPs over channels in Triton: two products, a shift or none between them, and their adjoint.

The hidden is written once in the forward, where the shift moves it, and computed again in the
backward.
"""

import torch
from torch import Tensor

from ._math import pick, result_dtype
from ._triton_gemm import linear, linear_backward_weight, refuses_dtypes
from ._triton_linear_norm import linear_norm, linear_norm_backward
from ._triton_math import MAX_CHANNELS, norm_backward
from ._triton_rows import as_rows, dense, normalize_rows, scale_backward, statistics
from .spatial_shift.triton_kernels import move


def refuses(given: dict) -> str | None:
    if reason := refuses_dtypes(given):
        return reason
    if given["w1"].dtype != given["w2"].dtype:
        return f"w1 is {given['w1'].dtype}, w2 is {given['w2'].dtype}"
    return None


def refuses_backward(given: dict) -> str | None:
    for norm, name, channels in (
        (given["norm"], "x", given["x"].shape[-1]),
        (given["post_norm"], "dy", given["dy"].shape[-1]),
    ):
        if norm != "none" and channels > MAX_CHANNELS:
            return f"normalizes at most {MAX_CHANNELS} channels, got {name} of {channels}"
    return refuses(given)


def mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
) -> Tensor:  # fmt: skip
    dtype = result_dtype(x, w2, scale, residual, post_norm, post_norm_weight)
    hidden = linear(
        x, w1, b1,
        stats=statistics(x, norm, eps), norm=(norm_weight, norm_bias), activation=activation,
        moves=shift,
    )  # fmt: skip
    post = post_norm_weight, post_norm_bias
    if post_norm != "layer_norm":
        return linear(hidden, w2, b2, post=post, scale=scale, residual=residual, dtype=dtype)
    return linear_norm(hidden, w2, b2, *post, post_eps, dtype, scale, residual)


class Needs:
    """Which of the gradients are wanted, and what that asks of the steps between."""

    def __init__(self, needs: list[bool]):
        # The order of the tensors in the schema.
        self.x, self.norm, self.linear1 = needs[0], needs[:3], needs[3:5]
        self.linear2, self.post, self.scale = needs[5:7], needs[7:9], needs[9]
        self.normed = any(self.norm)
        self.inner = self.normed or any(self.linear1)
        self.branch = self.inner or any(self.linear2)


def mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, shift, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
) -> list[Tensor]:  # fmt: skip
    wanted = Needs(needs)
    norm_weight, post_norm_weight = dense(norm_weight), dense(post_norm_weight)
    reads_branch = wanted.scale or post_norm != "none"
    normed, stats_of_x = x, statistics(x, norm, eps)
    if norm != "none":
        normed = normalize_rows(x, stats_of_x, norm_weight, norm_bias, w1.dtype)
    needs_hidden = reads_branch or wanted.linear2[0]
    inner, hidden = recompute(normed, w1, b1, shift, activation, wanted.inner, needs_hidden)

    branch = linear(hidden, w2, b2) if reads_branch else None
    stats = statistics(branch, post_norm, post_eps) if wanted.scale else (None, None)
    dy, dscale = scale_backward(
        dy, branch if wanted.scale else None, scale,
        w2.dtype if post_norm == "none" else dy.dtype,
        (wanted.branch or any(wanted.post), wanted.scale),
        stats=stats, norm=(post_norm_weight, post_norm_bias),
    )  # fmt: skip
    dpost = None, None
    if post_norm != "none" and dy is not None:
        asked = (wanted.branch, *wanted.post)
        dy, *dpost = norm_backward(
            dy.contiguous(), as_rows(branch)[None], post_norm, post_norm_weight, post_eps, asked
        )
        dy = None if dy is None else dy.view(branch.shape)

    dnorm, dlinear1 = (None, None, None), (None, None)
    if wanted.inner:
        dinner = inner_backward(dy, inner, w2, shift, activation)
        dlinear1 = linear_backward_weight(dinner, normed, w1.dtype, wanted.linear1)
        if wanted.normed:
            dnorm = linear_norm_backward(
                dinner, w1.mT, x, norm, norm_weight, eps, stats_of_x, wanted.norm
            )
    dlinear2 = linear_backward_weight(dy, hidden, w2.dtype, wanted.linear2)
    dx = dnorm[0].view(x.shape) if wanted.x else None
    return pick((dx, *dnorm[1:], *dlinear1, *dlinear2, *dpost, dscale), needs)


def recompute(normed, w1, b1, shift, activation, needs_inner: bool, needs_hidden: bool) -> tuple:
    """``(inner, hidden)``: what enters the activation and what the shift makes of what leaves it;
    None if not needed."""
    if not needs_hidden:
        return (linear(normed, w1, b1) if needs_inner else None), None
    inner = None
    if needs_inner:
        inner = normed.new_empty((*normed.shape[:-1], w1.shape[0]), dtype=w1.dtype)
    return inner, linear(normed, w1, b1, activation=activation, inner=inner, moves=shift)


def inner_backward(dy, inner, w2, shift, activation) -> Tensor:
    """The gradient of what enters the activation; the shift's adjoint is a pass of its own.

    A product that gathered its rows would read tiles no wider than a run of channels, again and
    again from the L2, which costs more than the pass.
    """
    if shift is None:
        return linear(dy, w2.mT, slope=inner, activation=activation)
    return move(linear(dy, w2.mT), shift, True, inner, activation)


def _meta(*shape, dtype=torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def case(x_shape, D: int, *shift, pre=True, activation="gelu", dtype=torch.bfloat16) -> tuple:
    """Inputs on the meta device for the compile check: a pre-norm or a post-norm MLP."""
    C = x_shape[-1]
    vector, x = _meta(C, dtype=dtype), _meta(*x_shape, dtype=dtype)
    norms = ("layer_norm", vector, vector, 1e-6), ("none", None, None, 0.0)
    norm, post = norms if pre else norms[::-1]
    w1, w2 = _meta(D, C, dtype=dtype), _meta(C, D, dtype=dtype)
    b1 = _meta(D, dtype=dtype)
    return x, *norm, w1, b1, w2, vector, *shift, activation, *post, None, x


def backward_case(*args, **options) -> tuple:
    x, *rest, scale, _ = case(*args, **options)
    norm_weight, post_weight = rest[1], rest[-3]
    has = [norm_weight is not None] * 2, [post_weight is not None] * 2
    needs = [True, *has[0], True, True, True, True, *has[1], False]
    return torch.empty_like(x), x, *rest, scale, needs
