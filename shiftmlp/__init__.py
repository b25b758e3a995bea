"""shiftmlp: fused spatial-shift and token-mixing kernels for vision-MLPs in PyTorch."""

from . import functional
from ._settings import disabled, use_backend
from ._version import __version__
from .norm import Affine, LayerNorm
from .shift import Shift

__all__ = ["Affine", "LayerNorm", "Shift", "__version__", "disabled", "functional", "use_backend"]
