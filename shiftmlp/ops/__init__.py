"""The ops: one folder each. ``OPS`` lists them, forward and backward, by name."""

from .channel_mlp.op import channel_mlp
from .shift_linear.op import shift_linear
from .shift_mlp.op import shift_mlp
from .spatial_shift.op import spatial_shift
from .token_gate.op import token_gate
from .token_linear.op import token_linear
from .token_mlp.op import token_mlp

FORWARD = (
    spatial_shift, shift_linear, shift_mlp, token_linear, token_mlp, token_gate, channel_mlp,
)  # fmt: skip
OPS = {op.name: op for forward in FORWARD for op in (forward, forward.backward)}
