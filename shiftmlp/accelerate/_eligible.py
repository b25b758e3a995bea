"""Which blocks of a model can be served, and why the others are left alone."""

import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .._checks import DTYPES
from ..nn._fused import activation_name, norm_value
from . import mixer, resmlp, s2mlp
from ._family import HOOKS, Family, Swapped, full_name, original_class

FAMILIES: dict[str, Family] = {
    original: family
    for family in (mixer.family, resmlp.family, s2mlp.family)
    for original in family.originals
}
MLPS = (
    "timm.layers.mlp.Mlp",
    "shiftmlp.nn._layers.Mlp",
    "shiftmlp.nn._layers.PlainShiftMlp",
)
Refusal = tuple[str, str] | None  # (a key of REASONS, a sentence)


class Candidate(NamedTuple):
    name: str
    block: nn.Module
    family: Family
    refusal: Refusal

    @property
    def is_swapped(self) -> bool:
        return isinstance(self.block, Swapped)


def candidates(model: nn.Module) -> Iterator[Candidate]:
    """Every outermost block of a known family, or derived from one."""
    inside = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        family = _family_of(original_class(module))
        if family is not None:
            inside = f"{name}." if name else ""
            yield Candidate(name or "(model)", module, family, refusal(module, family))


def _family_of(cls: type) -> Family | None:
    return next((FAMILIES[path] for c in cls.__mro__ if (path := full_name(c)) in FAMILIES), None)


def refusal(block: nn.Module, family: Family) -> Refusal:
    """Why a fused call could not stand for this block's forward."""
    checks = (_check_class, _check_children, _check_layers, _check_parameters)
    return next((found for check in checks if (found := check(block, family))), None)


def _check_class(block: nn.Module, family: Family) -> Refusal:
    cls = original_class(block)
    if "forward" in vars(block):
        return "SUBCLASSED", "forward was replaced on the block itself"
    is_itself = cls is type(block) or Swapped in type(block).__bases__
    if is_itself and full_name(cls) in family.originals:
        return None
    if cls.__module__.startswith("shiftmlp.nn."):
        return "ALREADY_FUSED", f"{cls.__name__} calls the ops itself"
    return "SUBCLASSED", f"{full_name(type(block))} may have a forward of its own"


def _check_children(block: nn.Module, family: Family) -> Refusal:
    for name, child in block.named_modules():
        if is_parametrized(child):
            return "PARAMETRIZED", f"{name or 'the block'} has parametrizations"
        if child is not block and ("forward" in vars(child) or any(vars(child)[h] for h in HOOKS)):
            return "HOOKED_CHILD", f"{name} has hooks, which a fused call would not fire"
    return None


def _check_layers(block: nn.Module, family: Family) -> Refusal:
    for name in family.mlps:
        mlp = getattr(block, name)
        if full_name(type(mlp)) not in MLPS:
            return "UNSUPPORTED_LAYER", f"{name} is a {_described(mlp)}, wanted a plain Mlp"
        for drop in ("drop1", "drop2"):
            if type(getattr(mlp, drop)) not in (nn.Dropout, nn.Identity):
                return "UNSUPPORTED_LAYER", f"{name}.{drop} is {_described(getattr(mlp, drop))}"
    for path in family.linear_paths():
        if found := _check_linear(".".join(path), block.get_submodule(".".join(path))):
            return found
    norms = {name: getattr(block, name) for name in family.norms}
    norms |= {f"{name}.norm": getattr(getattr(block, name), "norm", None) for name in family.mlps}
    acts = {f"{name}.act": getattr(block, name).act for name in family.mlps}
    return _first_type_error("UNSUPPORTED_NORM", norms, norm_value, family.norms) or (
        _first_type_error("UNSUPPORTED_ACT", acts, activation_name, acts)
    )


def _check_linear(name: str, layer: nn.Module) -> Refusal:
    cls = type(layer)
    if cls is nn.Linear:
        return None
    if any(word in full_name(cls).lower() for word in ("quant", "bitsandbytes", "8bit", "4bit")):
        return "QUANTIZED", f"{name} is a {full_name(cls)}, not nn.Linear"
    return "LORA", f"{name} is a {full_name(cls)}, not nn.Linear: its product is unknown"


def _first_type_error(code: str, modules: dict, read: Callable, allowed) -> Refusal:
    """The first module that ``read`` cannot take, or that stands where nothing may."""
    for name, module in modules.items():
        try:
            value = read(module)
        except TypeError as error:
            return code, f"{name}: {error}"
        if value is not None and name not in allowed:
            return code, f"{name} is {_described(module)}, wanted none between the two layers"
    return None


def _check_parameters(block: nn.Module, family: Family) -> Refusal:
    named = dict(block.named_parameters())
    for name, parameter in named.items():
        if _is_sharded(parameter):
            return "SHARDED_CHILD", f"{name} is a DTensor; accelerate before fully_shard"
        if type(parameter) is not nn.Parameter:
            return "QUANTIZED", f"{name} is a {full_name(type(parameter))}, not a plain tensor"
    dtypes, devices = ({getattr(p, what) for p in named.values()} for what in ("dtype", "device"))
    if len(dtypes) > 1 or not dtypes.issubset(DTYPES):
        return "DTYPE", f"its parameters are {_listed(dtypes)}; wanted one of {_listed(DTYPES)}"
    if len(devices) > 1 or torch.device("meta") in devices:
        return "DEVICE", f"its parameters are on {_listed(devices)}"
    return None


def _is_sharded(parameter: nn.Parameter) -> bool:
    # Half a second to import, and never needed where nobody did.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(parameter, tensors.DTensor)


def _described(module: nn.Module) -> str:
    return repr(module).splitlines()[0].rstrip("(")


def _listed(values) -> str:
    return ", ".join(sorted(map(str, values)))


Chooser = str | type | Callable[[nn.Module, str], bool]


def is_chosen(chooser: Chooser | list[Chooser], module: nn.Module, name: str) -> bool:
    """Whether a name pattern, a class or a function, or one of several, picks this module."""
    if isinstance(chooser, (list, tuple, set)):
        return any(is_chosen(one, module, name) for one in chooser)
    if isinstance(chooser, str):
        return fnmatchcase(name, chooser)
    if isinstance(chooser, type):
        return isinstance(module, chooser)
    return bool(chooser(module, name))
