"""bfloat16 in Triton's interpreter, which keeps it as raw 16-bit integers and computes on those.

``patch()`` makes casts round to nearest even and arithmetic run in fp32 with one rounding, as on a
GPU. Not repaired: reductions in bfloat16 and its atomics, which no kernel here uses.
"""

import functools

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def to_float(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def to_bits(values: np.ndarray) -> np.ndarray:
    """fp32 rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def patch() -> None:
    """Replace the builder methods that compute; safe to call again."""
    if getattr(InterpreterBuilder, "computes_bf16", False):
        return
    InterpreterBuilder.computes_bf16 = True
    InterpreterBuilder.cast_impl = _cast(InterpreterBuilder.cast_impl)
    for name in ("binary_op", "unary_op", "create_fma", "create_dot"):
        setattr(InterpreterBuilder, name, _in_fp32(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.get_bf16 = _constant


def _is_bf16(value) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widened(value):
    return TensorHandle(to_float(value.data), tl.float32) if _is_bf16(value) else value


def _narrowed(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(to_bits(handle.data), tl.bfloat16)


def _constant(self, value: float) -> TensorHandle:
    return _narrowed(TensorHandle(np.array([value], np.float32), tl.float32))


def _cast(original):
    @functools.wraps(original)
    def cast_impl(self, src, dst_type):
        if dst_type.scalar == tl.bfloat16:
            return src if _is_bf16(src) else _narrowed(original(self, src, tl.float32))
        return original(self, _widened(src), dst_type)

    return cast_impl


def _in_fp32(original):
    """``original`` on fp32 operands; narrow again what has the type of a bfloat16 operand."""

    @functools.wraps(original)
    def method(self, *operands):
        wide = original(self, *map(_widened, operands))
        # The type comes from the last operand that is a tensor: the accumulator of dot and fma.
        typed = [operand for operand in operands if isinstance(operand, TensorHandle)][-1]
        if not _is_bf16(typed) or wide.data.dtype == bool:
            return wide
        return _narrowed(wide)

    return method
