"""Models by name for the commands: timm's and ours, with fresh weights; nothing is downloaded."""

import argparse
import difflib
import importlib.util
import sys

import torch
from torch import nn

from .. import models
from .._settings import BACKENDS
from ._console import UserError, positive

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = ("img_size", "patch_size", "embed_dim", "num_blocks")
TIMM_FAMILIES = ("mixer_*", "resmlp_*", "gmlp_*", "gmixer_*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, how small, on what."""
    add = parser.add_argument
    text = "of timm or of shiftmlp.list_models() (default mixer_b16_224, without timm mixer_b16)"
    add("--model", metavar="NAME", help=text)
    add("--batch", type=positive, help="images")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--backend", choices=BACKENDS, default="auto")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    add("--threads", type=positive, help="of the CPU")
    for name in SIZES:
        add(f"--{name.replace('_', '-')}", type=positive, metavar="N", help="for a smaller model")


def settle(args: argparse.Namespace) -> None:
    """Fill in what depends on the machine."""
    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        raise UserError("--device cuda, but PyTorch finds no GPU")
    args.device = args.device or ("cuda" if has_gpu else "cpu")
    args.model = args.model or ("mixer_b16_224" if _has_timm() else "mixer_b16")
    if args.threads:
        torch.set_num_threads(args.threads)


def load(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """The model in eval mode, and the side of its images in pixels.

    Raises:
        UserError: no such model, or it cannot be made in this size.
    """
    sizes = {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    try:
        model, side = _ours(args.model, sizes) or _timms(args.model, sizes)
    except (TypeError, ValueError) as error:
        raise UserError(f"{args.model} cannot be made with {sizes}: {error}") from None
    _open_head(model)
    return model.to(args.device, DTYPES[args.dtype]).eval(), side


def _ours(name: str, sizes: dict) -> tuple[nn.Module, int] | None:
    if name not in models.list_models():
        return None
    return models.create_model(name, **sizes), sizes.get("img_size", 224)


def _timms(name: str, sizes: dict) -> tuple[nn.Module, int]:
    known = models.list_models()
    if not _has_timm():
        raise UserError(_unknown(name, known) + "; timm, which has more, is not installed")
    timm = import_timm()
    if not timm.is_model(name):
        families = [model for family in TIMM_FAMILIES for model in timm.list_models(family)]
        raise UserError(_unknown(name, known + families))
    fixed = [size for size in ("patch_size", "embed_dim") if size in sizes]
    if fixed:
        raise UserError(f"timm's {name} fixes {' and '.join(fixed)}; shiftmlp's models take any")
    image = {"img_size": sizes["img_size"]} if "img_size" in sizes else {}
    model = timm.create_model(name, pretrained=False, **image)
    if "num_blocks" in sizes:
        model.blocks = model.blocks[: sizes["num_blocks"]]
    return model, sizes.get("img_size", model.default_cfg["input_size"][-1])


def _has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    return f"no model is named {name!r}; near: {', '.join(near)}"


def import_timm():
    """timm, also beside a torchvision that was built for a GPU and finds none."""
    make_torchvision_importable()
    import timm

    return timm


def make_torchvision_importable() -> None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # It stops at operators that are missing; timm imports it, but calls none of them.
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    except ImportError:
        pass


_declared: list[torch.library.Library] = []  # the declarations last as long as this holds them


def _open_head(model: nn.Module) -> None:
    """A head of zeros, as these models begin with, gives every class the same score."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear) and not head.weight.any():
        nn.init.trunc_normal_(head.weight, std=0.02)
