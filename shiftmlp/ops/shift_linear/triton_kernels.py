"""shift_linear in Triton: a GEMM whose loads of x apply the shift; no shifted copy is written."""

import functools

import torch
from torch import Tensor

from ...shift import Shift
from .._math import pick, result_dtype
from .._triton_gemm import linear, linear_backward_weight, refuses_dtypes
from .._triton_rows import scale_backward
from ..spatial_shift import triton_kernels as spatial_shift
from .op import shift_linear as op


def _refuses(op, *inputs) -> str | None:
    given = dict(zip(op.names, inputs, strict=False))
    return refuses_dtypes(given) or spatial_shift.refuses(given["x"], given["shift"])


refuses = functools.partial(_refuses, op)


def shift_linear(x, weight, bias, shift, activation, scale, residual) -> Tensor:
    return linear(
        x, weight, bias, shift=shift, activation=activation, scale=scale, residual=residual,
        dtype=result_dtype(x, weight, scale, residual),
    )  # fmt: skip


refuses_backward = functools.partial(_refuses, op.backward)


def shift_linear_backward(dy, x, weight, bias, shift, activation, scale, needs) -> list[Tensor]:
    needs_x, needs_weight, needs_bias, needs_scale = needs
    needs_inner = needs_scale or activation != "none"
    # The products over pixels read whole tiles of channels, which one step does not move.
    moved = spatial_shift.spatial_shift(x, shift) if needs_inner or needs_weight else None
    inner = linear(moved, weight, bias) if needs_inner else None
    needs_product = needs_x or needs_weight or needs_bias
    dy, dscale = scale_backward(
        dy, inner, scale, weight.dtype, (needs_product, needs_scale), activation=activation
    )
    dx = None
    if needs_x:
        [dx] = spatial_shift.spatial_shift_backward(linear(dy, weight.mT, dtype=x.dtype), shift, [])
    dweight, dbias = linear_backward_weight(dy, moved, weight.dtype, (needs_weight, needs_bias))
    return pick((dx, dweight, dbias, dscale), needs)


def _case(H: int, C: int, O: int, shift: Shift, dtype=torch.bfloat16, **options):  # noqa: E741
    """128 maps of H x H on the meta device, of C channels and then O."""

    def make(*shape) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    given = {"activation": "none", "scale": None, "residual": None} | options
    return make(128, H, H, C), make(O, C), make(O), shift.spec, *given.values()


def _backward_case(*args, **options):
    x, weight, bias, shift, activation, scale, _ = _case(*args, **options)
    needs = [True, True, True, scale is not None]
    return torch.empty_like(x), x, weight, bias, shift, activation, scale, needs


COMPILE_CASES = {
    "deep bf16 14x14x384": (shift_linear, _case(14, 384, 384, Shift.S2)),
    "wide bf16 14x14x768 gelu": (shift_linear, _case(14, 768, 768, Shift.S2, activation="gelu")),
    "deep fp32 14x14x384": (shift_linear, _case(14, 384, 384, Shift.S2, torch.float32)),
    "cycle(7, w) bf16 14x14x320": (shift_linear, _case(14, 320, 320, Shift.cycle(7, "w"))),
    "deep backward bf16 14x14x384 gelu": (
        shift_linear_backward, _backward_case(14, 384, 384, Shift.S2, activation="gelu")
    ),
}  # fmt: skip
