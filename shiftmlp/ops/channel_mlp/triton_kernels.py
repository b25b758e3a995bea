"""channel_mlp in Triton: two GEMMs with everything else in their loads and epilogues."""

from torch import Tensor

from .. import _triton_mlp
from .op import channel_mlp as op


def refuses(*inputs) -> str | None:
    return _triton_mlp.refuses(dict(zip(op.names, inputs, strict=False)))


def refuses_backward(*inputs) -> str | None:
    return _triton_mlp.refuses_backward(dict(zip(op.backward.names, inputs, strict=False)))


def channel_mlp(
    x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
) -> Tensor:  # fmt: skip
    return _triton_mlp.mlp(
        x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, None, activation,
        post_norm, post_norm_weight, post_norm_bias, post_eps, scale, residual,
    )  # fmt: skip


def channel_mlp_backward(
    dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, activation,
    post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
) -> list[Tensor]:  # fmt: skip
    return _triton_mlp.mlp_backward(
        dy, x, norm, norm_weight, norm_bias, eps, w1, b1, w2, b2, None, activation,
        post_norm, post_norm_weight, post_norm_bias, post_eps, scale, needs,
    )  # fmt: skip


COMPILE_CASES = {
    "B/16 bf16 196x768": (channel_mlp, _triton_mlp.case((128, 196, 768), 3072)),
    "B/16 backward bf16 196x768": (
        channel_mlp_backward, _triton_mlp.backward_case((128, 196, 768), 3072)
    ),
}  # fmt: skip
