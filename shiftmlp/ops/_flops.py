"""FLOP formulas for ``FlopCounterMode``, which counts an op without one as nothing.

PyTorch's counter imports triton, and ``import shiftmlp`` must not: where the counter is not loaded
yet, the formulas wait until somebody loads it.
"""

import importlib.abc
import importlib.util
import math
import sys
from collections.abc import Callable

COUNTER = "torch.utils.flop_counter"
_waiting: list[tuple[object, Callable]] = []


def register_flops(packet, formula: Callable) -> None:
    """Count ``packet`` of torch.ops by ``formula``, which gets tensors as shapes."""
    if COUNTER in sys.modules:
        sys.modules[COUNTER].register_flop_formula(packet)(formula)
        return
    if not _waiting:
        sys.meta_path.insert(0, _AfterImport())
    _waiting.append((packet, formula))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the counter as Python would, and has the formulas registered once it is loaded."""

    def find_spec(self, name, path, target=None):
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            for packet, formula in _waiting:
                module.register_flop_formula(packet)(formula)

        spec.loader.exec_module = load_and_register
        return spec


def macs(shape, weight_shape) -> int:
    """Multiply-adds of a linear layer over one axis of ``shape``: numel / in * (out * in)."""
    return math.prod(shape) * weight_shape[0]
