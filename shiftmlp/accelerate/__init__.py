"""Finds the blocks of an existing model, lets them run in fused calls, and proves it."""

from ._api import accelerate, accelerated, explain, restore
from ._verify import Verification, verify
from .report import REASONS, Report, Row

__all__ = [
    "REASONS", "Report", "Row", "Verification", "accelerate", "accelerated", "explain", "restore",
    "verify",
]  # fmt: skip
