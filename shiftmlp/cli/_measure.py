"""How long a model takes, and its blocks within it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..accelerate._timing import seconds, wait


def inference(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return model.eval()(images)

    return run


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward, loss and backward; no optimizer, so that the weights of two models stay equal."""
    labels = torch.arange(len(images), device=images.device)

    def run() -> None:
        scores = model.train()(images)
        nn.functional.cross_entropy(scores.float(), labels % scores.shape[1]).backward()
        model.zero_grad(set_to_none=True)

    return run


def share_of(blocks: list[nn.Module], run: Callable[[], object], device: torch.device) -> float:
    """The part of one call of ``run`` that goes by between a block's begin and end.

    Hooks around every block, forward and backward, read the clock when the device is idle.
    """
    inside, began = 0.0, 0.0

    def begin(*_):
        nonlocal began
        wait(device)
        began = time.perf_counter()

    def end(*_):
        nonlocal inside
        wait(device)
        inside += time.perf_counter() - began

    hooks = []
    for block in blocks:
        hooks += [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
        hooks.append(block.register_full_backward_pre_hook(begin))
        hooks.append(block.register_full_backward_hook(end))
    try:
        return inside / total if (total := seconds(run, device)) else 0.0
    finally:
        for hook in hooks:
            hook.remove()
