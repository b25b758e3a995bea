"""Small models of every family, and the questions that the tests of accelerate ask of them."""

import pytest
import torch
from torch import nn

import shiftmlp
from shiftmlp.accelerate import _plan

mlp_mixer = pytest.importorskip("timm.models.mlp_mixer")
SMALL = {"num_classes": 5, "img_size": 16, "patch_size": 4, "embed_dim": 24, "num_blocks": 2}


def mixer(**options) -> nn.Module:
    return opened(mlp_mixer.MlpMixer(**SMALL | options))


def resmlp(**options) -> nn.Module:
    block = {"block_layer": mlp_mixer.ResBlock, "norm_layer": mlp_mixer.Affine, "mlp_ratio": 4}
    return opened(mlp_mixer.MlpMixer(**SMALL | block | options))


def s2mlp(**options) -> nn.Module:
    sizes = {name: SMALL[name] for name in ("num_classes", "patch_size", "embed_dim", "num_blocks")}
    return opened(shiftmlp.create_model("s2mlp_deep", **sizes | options))


def opened(model: nn.Module) -> nn.Module:
    """timm's heads begin at zero, where equality would prove nothing."""
    nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


MODELS = {"mixer": mixer, "resmlp": resmlp, "s2mlp": s2mlp}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def reference(model: nn.Module, **options) -> nn.Module:
    """Accelerated by what every machine has."""
    return shiftmlp.accelerate(model, backend="reference", **options)


def reasons(model: nn.Module) -> list[str | None]:
    return [row.reason for row in shiftmlp.explain(model).rows]


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def ops_called(model: nn.Module) -> set[str]:
    with _plan.Kernels() as kernels:
        model(images())
    return set(kernels.serving)


class Wrapped(nn.Module):
    """What LoRA makes of a layer: it has a weight, but computes more."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    in_features = property(lambda self: self.base_layer.in_features)

    def forward(self, x):
        return 2 * self.base_layer(x)


def put(path: str, make):
    """An edit that replaces one part of a block."""

    def edit(block):
        owner, _, name = path.rpartition(".")
        owner = block.get_submodule(owner)
        setattr(owner, name, make(getattr(owner, name)))

    return edit
