"""What the user asked for outside of a call: the default backend and the kill switch."""

import contextlib
import os
from collections.abc import Iterator

from .ops._op import PREFERENCE

BACKENDS = ("auto", *PREFERENCE)


def check_backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    return backend


class _Settings:
    # A plain object's attributes: torch.compile guards on them, but bakes a thread-local in.
    backend = check_backend(os.environ.get("SHIFTMLP_BACKEND", "auto"))
    disabled = os.environ.get("SHIFTMLP_DISABLE", "0") not in ("", "0")


_settings = _Settings()


def resolve(backend: str) -> str:
    """The backend that a call with this argument means now."""
    if backend == "auto":
        return "reference" if _settings.disabled else _settings.backend
    return check_backend(backend)


def is_disabled() -> bool:
    return _settings.disabled


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within this block, calls with ``backend="auto"`` mean ``backend``.

    A named backend that refuses raises NotImplementedError; only "auto" looks further. Also the
    environment variable ``SHIFTMLP_BACKEND``. Holds for the process, as PyTorch's backend flags do.

    Raises:
        ValueError: no such backend.
    """
    before, _settings.backend = _settings.backend, check_backend(backend)
    try:
        yield
    finally:
        _settings.backend = before


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Within this block accelerated models run their own code, and "auto" means the reference.

    Also the environment variable ``SHIFTMLP_DISABLE=1``.
    """
    before, _settings.disabled = _settings.disabled, True
    try:
        yield
    finally:
        _settings.disabled = before
