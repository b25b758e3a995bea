"""The modules that test_nn, test_nn_contract and test_models walk: small, odd sizes, random."""

import contextlib

import torch
from torch import nn

from shiftmlp import nn as snn
from shiftmlp.nn import _plain
from shiftmlp.testing import assert_close_to_rounding

B, H, W, C = 3, 4, 7, 32
S = H * W

# fused, plain, timm's name, how many tokens
BLOCKS = {
    "mixer": (snn.MixerBlock, _plain.PlainMixerBlock, "MixerBlock", (C, S)),
    "resmlp": (snn.ResMLPBlock, _plain.PlainResMLPBlock, "ResBlock", (C, S)),
    "gate": (snn.SpatialGatingUnit, _plain.PlainSpatialGatingUnit, "SpatialGatingUnit", (C, S)),
    "gmlp": (snn.SpatialGatingBlock, _plain.PlainSpatialGatingBlock, "SpatialGatingBlock", (C, S)),
    "s2": (snn.S2Block, _plain.PlainS2Block, None, (C,)),
}
TIMMS = [name for name, row in BLOCKS.items() if row[2]]
NOT_GATE = [name for name in BLOCKS if name != "gate"]


def made(cls, *args, seed=0, **kwargs):
    """A module with every parameter random: published starting values hide whole branches."""
    torch.manual_seed(seed)
    module = cls(*args, **kwargs)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def twin(cls, module, *args, **kwargs):
    """A ``cls`` with the parameters of ``module``."""
    device, dtype = next(module.parameters()).device, next(module.parameters()).dtype
    other = cls(*args, device=device, dtype=dtype, **kwargs)
    other.load_state_dict(module.state_dict(), strict=True)
    return other.train(module.training)


def inputs(name, **at):
    generator = torch.Generator().manual_seed(1)
    shape = (B, H, W, C) if name == "s2" else (B, S, C)
    return torch.randn(shape, generator=generator).to(**at)


def results(module, x, autocast=None):
    """``[y, dx, a gradient for each parameter]``."""
    x = x.detach().clone().requires_grad_()
    mixed = torch.autocast(x.device.type, autocast) if autocast else contextlib.nullcontext()
    with mixed:
        y = module(x)
    generator = torch.Generator().manual_seed(2)
    dy = torch.randn(y.shape, generator=generator).bfloat16().to(y.device, y.dtype)
    parameters = list(module.parameters())
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], dy)]


def assert_all_close_to_rounding(ours, theirs):
    """What ``results`` found: the output on its own scale, then the gradients on theirs."""
    assert_close_to_rounding(ours[0], theirs[0])
    assert_close_to_rounding(ours[1:], theirs[1:])


MLP = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
LAYERS = {
    "SpatialShift": (lambda **kw: snn.SpatialShift(), "s2", []),
    "ShiftLinear": (lambda **kw: snn.ShiftLinear(C, 8, **kw), "s2", ["weight", "bias"]),
    "ShiftMlp": (lambda **kw: snn.ShiftMlp(C, 16, 8, **kw), "s2", MLP),
    "TokenLinear": (lambda **kw: snn.TokenLinear(S, 8, **kw), "mixer", ["weight", "bias"]),
    "TokenMlp": (lambda **kw: snn.TokenMlp(S, 16, 8, **kw), "mixer", MLP),
    "ChannelMlp": (lambda **kw: snn.ChannelMlp(C, 16, 8, **kw), "mixer", MLP),
}


def every_module():
    blocks = {
        name: (lambda r=row, **kw: made(r[0], *r[3], **kw), name) for name, row in BLOCKS.items()
    }
    return blocks | {name: (make, like) for name, (make, like, _) in LAYERS.items()}
