"""A family of blocks that the ops can serve, and the classes that its blocks are swapped to.

A swapped block keeps its parameters, hooks, names and ``isinstance``: only its class becomes a
subclass of what it was. Each subclass can be imported from the family's module by its name, which
is what pickle does, and exists from then on: no module is imported for a class that nobody uses.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .._settings import is_disabled, resolve
from ..nn._fused import has_active_dropout

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Swapped(nn.Module):
    """First base of every swapped block's class. ``_shiftmlp`` on the block holds its facts."""

    def forward(self, x: Tensor) -> Tensor:
        facts = self._shiftmlp
        # Where only the reference would serve, the original is the same and keeps its activations.
        idle = x.device.type == facts["idle_on"] and resolve(facts["backend"]) == "auto"
        if idle or is_disabled() or has_active_dropout(self) or not self._is_intact():
            return super().forward(x)
        return self._shiftmlp_forward(self, x, facts["backend"])

    def _is_intact(self) -> bool:
        """No layer was wrapped or hooked since: LoRA has a ``weight`` too, but not all of it."""
        for path in self._shiftmlp_linears:
            layer = self
            for name in path:
                layer = layer._modules[name]
            if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
                return False
        return True


@dataclass(frozen=True)
class Family:
    """What it takes to serve one kind of block.

    Args:
        home: the module that holds the swapped classes.
        originals: full names of the classes that are served; subclasses are not.
        forward: ``forward(block, x, backend)`` in fused calls.
        mlps, norms: names of the block's MLPs and norms.
        sample: the shape of an input for a given block.
        linears: names of linear layers outside of the MLPs.
        shifts: whether it shifts over space.
    """

    home: str
    originals: tuple[str, ...]
    forward: Callable
    mlps: tuple[str, ...]
    norms: tuple[str, ...]
    sample: Callable[[nn.Module], tuple[int, ...]]
    linears: tuple[str, ...] = ()
    shifts: bool = False

    def swapped_class(self, name: str) -> type[Swapped]:
        """The home module's ``__getattr__``."""
        for path in self.originals:
            if name == _swapped_name(path):
                made = self._make(name, path)
                setattr(sys.modules[self.home], name, made)
                return made
        raise AttributeError(f"module {self.home!r} has no attribute {name!r}")

    def swapped(self, original: type) -> type[Swapped]:
        return getattr(sys.modules[self.home], _swapped_name(full_name(original)))

    def linear_paths(self) -> tuple[tuple[str, ...], ...]:
        inside = ((mlp, name) for mlp in self.mlps for name in ("fc1", "fc2"))
        return (*((name,) for name in self.linears), *inside)

    def _make(self, name: str, path: str) -> type[Swapped]:
        module, _, class_name = path.rpartition(".")
        original = getattr(importlib.import_module(module), class_name)
        return type(
            name,
            (Swapped, original),
            {
                "__module__": self.home,
                "__doc__": f"{path} in fused calls.",
                "_shiftmlp_original": original,
                "_shiftmlp_forward": staticmethod(self.forward),
                "_shiftmlp_linears": self.linear_paths(),
            },
        )


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def original_class(block: nn.Module) -> type:
    """The class that ``block`` has, or had before it was swapped."""
    return getattr(type(block), "_shiftmlp_original", type(block))


def _swapped_name(path: str) -> str:
    return "Fused" + path.rpartition(".")[2]
