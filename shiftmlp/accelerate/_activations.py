"""What reaches each block when the model runs on the user's example."""

import torch
from torch import Tensor, nn

from ._eligible import Candidate
from ._plan import QUICK


def activations(model: nn.Module, found: list[Candidate], example, full: bool) -> dict[str, Tensor]:
    """The input of every block that runs, by name; all of it for the first of a kind, or if full.

    The model runs once in eval mode without gradients; modes and random state are put back.
    """
    args, kwargs = as_call(example)
    caught: dict[str, Tensor] = {}
    kinds = set()

    def catch(name: str):
        def hook(block, args):
            if name not in caught and args and isinstance(args[0], Tensor):
                x = args[0].detach()
                # A kind of block is timed once, on the whole batch; see Examiner.
                kind = type(block), x.shape[1:]
                is_first = kind not in kinds
                kinds.add(kind)
                caught[name] = (x if full or is_first else x[:QUICK]).clone()

        return hook

    modes = {module: module.training for module in model.modules()}
    hooks = [c.block.register_forward_pre_hook(catch(c.name)) for c in found]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            model.eval()
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return caught


def as_call(example) -> tuple[tuple, dict]:
    """``(args, kwargs)`` of the call that an example stands for."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if isinstance(example, dict):
        return (), example
    raise TypeError(
        "example_input must be a Tensor, a tuple of arguments or a dict of keyword arguments, got "
        f"{type(example).__name__}"
    )
