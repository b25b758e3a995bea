"""Who competes: unfused PyTorch as users have it, the same compiled, and each of our backends.

A contender takes a case's tensors by name and returns the result. Blocks are whole, as models run
them: norm before, residual after. ``peers`` has those that freeze the weights.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..norm import Affine, LayerNorm
from ..ops._op import PREFERENCE
from ..ops._triton import INTERPRETED
from .peers import PEERS

BASELINES = ("eager", "padded", "compile", *PEERS)
BACKENDS = ("auto", *PREFERENCE)
ALIGNED = 8  # tokens: 16 bytes of a 16-bit dtype, which cuBLAS and TMA ask of a row
TOKEN_OPS = ("token_mlp", "token_linear", "token_gate")

_NORMS = {"token_linear": Affine}
_RESIDUAL = ("token_mlp", "token_linear", "shift_mlp", "channel_mlp")
_TOKEN_AXES = {
    "x": (-2,), "u": (-2,), "v": (-2,), "weight": (0, 1), "bias": (0,), "w1": (1,), "w2": (0,),
    "b2": (0,),
}  # fmt: skip


def _layer_norm(x, weight, bias):
    return F.layer_norm(x, x.shape[-1:], weight, bias, LayerNorm().eps)


def _token_mlp(x, norm_weight, norm_bias, w1, b1, w2, b2):
    y = _layer_norm(x, norm_weight, norm_bias).transpose(1, 2)
    y = F.linear(F.gelu(F.linear(y, w1, b1)), w2, b2)
    return x + y.transpose(1, 2)


def _token_linear(x, norm_weight, norm_bias, weight, bias, scale):
    y = torch.addcmul(norm_bias, norm_weight, x).transpose(1, 2)
    return x + scale * F.linear(y, weight, bias).transpose(1, 2)


def _token_gate(u, v, norm_weight, norm_bias, weight, bias):
    v = _layer_norm(v, norm_weight, norm_bias).transpose(1, 2)
    return u * F.linear(v, weight, bias).transpose(1, 2)


def _spatial_shift(x):
    """The paper's shift as slice copies, out of place so that it means what the paper says."""
    if torch.onnx.is_in_onnx_export():
        return _shift_by_parts(x)
    quarter = x.shape[-1] // 4
    y = x.clone()
    y[:, 1:, :, :quarter] = x[:, :-1, :, :quarter]
    y[:, :-1, :, quarter : 2 * quarter] = x[:, 1:, :, quarter : 2 * quarter]
    y[:, :, 1:, 2 * quarter : 3 * quarter] = x[:, :, :-1, 2 * quarter : 3 * quarter]
    y[:, :, :-1, 3 * quarter :] = x[:, :, 1:, 3 * quarter :]
    return y


def _shift_by_parts(x):
    """The same without writes into slices, which ONNX has only as slow scatters."""
    right, left, down, up = x.split(x.shape[-1] // 4, -1)
    right = torch.cat([right[:, :1], right[:, :-1]], 1)
    left = torch.cat([left[:, 1:], left[:, -1:]], 1)
    down = torch.cat([down[:, :, :1], down[:, :, :-1]], 2)
    up = torch.cat([up[:, :, 1:], up[:, :, -1:]], 2)
    return torch.cat([right, left, down, up], -1)


def _shift_linear(x, weight, bias):
    return F.linear(_spatial_shift(x), weight, bias)


def _shift_mlp(x, norm_weight, norm_bias, w1, b1, w2, b2):
    hidden = F.gelu(F.linear(_layer_norm(x, norm_weight, norm_bias), w1, b1))
    return x + F.linear(_spatial_shift(hidden), w2, b2)


def _channel_mlp(x, norm_weight, norm_bias, w1, b1, w2, b2):
    hidden = F.gelu(F.linear(_layer_norm(x, norm_weight, norm_bias), w1, b1))
    return x + F.linear(hidden, w2, b2)


EAGER = {
    "token_mlp": _token_mlp,
    "token_linear": _token_linear,
    "token_gate": _token_gate,
    "spatial_shift": _spatial_shift,
    "shift_linear": _shift_linear,
    "shift_mlp": _shift_mlp,
    "channel_mlp": _channel_mlp,
}


def arguments(op: str, norm_weight=None, norm_bias=None, **tensors: Tensor) -> dict:
    """A case's tensors as ``functional.<op>`` takes them."""
    if norm_weight is not None:
        tensors["norm"] = _NORMS.get(op, LayerNorm)(norm_weight, norm_bias)
    if op in _RESIDUAL:
        tensors["residual"] = tensors["x"]
    return tensors


def ours(op: str, backend: str) -> Callable:
    """``functional.<op>`` on the same tensors by name."""
    function = getattr(functional, op)
    return lambda **tensors: function(**arguments(op, **tensors), backend=backend)


@dataclass(frozen=True)
class Contender:
    name: str
    function: Callable
    multiple: int = 1  # of which the number of tokens is made before the clock starts
    bind: Callable = functools.partial  # of function and tensors by name, a call without arguments

    @property
    def is_ours(self) -> bool:
        return self.name in BACKENDS

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor with its token axes filled up with zeros, as a model that pads once would."""
        for axis in _TOKEN_AXES.get(name, ()):
            shape = list(tensor.shape)
            shape[axis] = -shape[axis] % self.multiple
            tensor = torch.cat([tensor, tensor.new_zeros(shape)], axis)
        return tensor


def contenders(job, against=BASELINES, backends=BACKENDS, device="cpu") -> list[Contender]:
    """Eager always takes part: it is what errors and ratios are measured by."""
    eager = job.case.eager(job.dtype)
    chosen = [Contender("eager", eager)]
    if "padded" in against and job.case.op in TOKEN_OPS:
        chosen.append(Contender("padded", eager, ALIGNED))
    if "compile" in against:
        # Graphs are captured by the timer for everyone; inductor's own would copy the inputs.
        mode = "max-autotune-no-cudagraphs" if torch.device(device).type == "cuda" else "default"
        chosen.append(Contender("compile", torch.compile(eager, mode=mode, dynamic=False)))
    if torch.device(device).type == "cpu" and job.direction == "fwd":
        for name, (bind, dtypes) in PEERS.items():
            if name in against and job.dtype in dtypes:
                chosen.append(Contender(name, eager, bind=bind))
    for backend in backends:
        if not (backend == "triton" and INTERPRETED):
            chosen.append(Contender(backend, job.case.ours(backend, job.dtype)))
    return chosen
