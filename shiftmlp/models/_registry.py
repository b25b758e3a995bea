"""``create_model`` and ``list_models``: models by name."""

import difflib
from collections.abc import Callable

from torch import nn

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The function's name becomes the model's."""
    _MODELS[build.__name__] = build
    return build


def list_models() -> list[str]:
    """The names that ``create_model`` knows, sorted."""
    return sorted(_MODELS)


def create_model(name: str, **kwargs) -> nn.Module:
    """A model by name, with fresh weights; nothing is downloaded.

    Args:
        name: one of ``list_models()``.
        fused: build it of the fused blocks. By default a model is plain PyTorch, as published, and
            ``shiftmlp.accelerate(model)`` makes it fast; both have the same state dict.
        num_classes: 1000; 0 leaves the head out.
        img_size, patch_size, in_chans, embed_dim, num_blocks, drop_path_rate, device, dtype:
            as in timm's ``MlpMixer``; by default what the name says.

    Raises:
        ValueError: no such model; names those whose names are near.

    State keys of Mixer, ResMLP and gMLP are timm's, so timm's checkpoints load with strict=True.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(str(name), _MODELS, n=3, cutoff=0.5) or list_models()
        raise ValueError(f"no model is named {name!r}; near: {', '.join(near)}")
    return _MODELS[name](**kwargs)
