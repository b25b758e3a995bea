"""shiftmlp: fused spatial-shift and token-mixing kernels for vision-MLPs in PyTorch."""

from . import autograd, functional, nn
from ._info import backends, info
from ._settings import disabled, use_backend
from ._version import __version__

# The function stands before the package of the same name, which stays importable.
from .accelerate import Report, Verification, accelerate, accelerated, explain, restore, verify
from .models import create_model, list_models
from .norm import Affine, LayerNorm
from .shift import Shift

__all__ = [
    "Affine",
    "LayerNorm",
    "Report",
    "Shift",
    "Verification",
    "__version__",
    "accelerate",
    "accelerated",
    "autograd",
    "backends",
    "create_model",
    "disabled",
    "explain",
    "functional",
    "info",
    "list_models",
    "nn",
    "restore",
    "use_backend",
    "verify",
]
