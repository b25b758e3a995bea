"""The ``torch.autograd.Function`` of every op, for those who write their own modules around them.

``apply`` takes the arguments of the op in ``torch.ops.shiftmlp``, in its order (the docstring lists
them): a norm as its kind, weight, bias and eps, a shift as its ``spec``, the backend last. The op
and the Function share the gradient's two methods, so that they cannot differ.
"""

from .ops.channel_mlp.op import ChannelMlp
from .ops.shift_linear.op import ShiftLinear
from .ops.shift_mlp.op import ShiftMlp
from .ops.spatial_shift.op import SpatialShift
from .ops.token_gate.op import TokenGate
from .ops.token_linear.op import TokenLinear
from .ops.token_mlp.op import TokenMlp

__all__ = [
    "ChannelMlp",
    "ShiftLinear",
    "ShiftMlp",
    "SpatialShift",
    "TokenGate",
    "TokenLinear",
    "TokenMlp",
]
