"""The frame that all vision-MLPs share: patches, blocks, mean over the patches, head."""

import math

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts (B, in_chans, height, width) into patches and embeds each: (B, H, W, embed_dim)."""

    def __init__(self, patch_size, in_chans: int, embed_dim: int, norm_layer=None, **at):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size, **at)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(embed_dim, **at)

    def forward(self, image: Tensor) -> Tensor:
        in_chans, patch = self.proj.in_channels, self.proj.kernel_size
        fits = image.dim() == 4 and image.shape[1] == in_chans
        if not fits or image.shape[2] % patch[0] or image.shape[3] % patch[1]:
            raise ValueError(
                f"image must be (B, {in_chans}, height, width) with sides divisible by {patch}, "
                f"got {tuple(image.shape)}"
            )
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class VisionMLP(nn.Module):
    """Images (B, in_chans, height, width) to class scores (B, num_classes).

    Args:
        blocks: the blocks, in order.
        stem: makes (B, H, W, C) of an image.
        norm: after the last block.
        num_classes: 0 leaves the head out.
        img_size: (height, width) where the blocks mix tokens and so take one size only; None where
            they take maps of any size.
    """

    def __init__(self, blocks, stem: nn.Module, norm: nn.Module, num_classes: int, img_size, **at):
        super().__init__()
        self.img_size = img_size
        self.num_classes = num_classes
        self.embed_dim = stem.proj.out_channels
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm
        self.head = nn.Linear(self.embed_dim, num_classes, **at) if num_classes else nn.Identity()
        init_weights(self)

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, S, C) where blocks mix tokens, (B, H, W, C) where they shift maps."""
        x = self.stem(image)
        if self.img_size is not None:
            if image.shape[2:] != self.img_size:
                wanted, given = (" x ".join(map(str, s)) for s in (self.img_size, image.shape[2:]))
                raise ValueError(
                    f"image must be {wanted} pixels, the size that the token-mixing weights were "
                    f"made for, got {given}"
                )
            x = x.flatten(1, 2)
        return self.norm(self.blocks(x))

    def forward(self, image: Tensor) -> Tensor:
        x = self.forward_features(image)
        return self.head(x.flatten(1, -2).mean(1))


def pair(size) -> tuple[int, int]:
    """``(height, width)`` of one number or two."""
    return (size, size) if isinstance(size, int) else tuple(size)


def grid(img_size, patch_size) -> tuple[int, int]:
    """``(H, W)``: how many patches an image has along each side.

    Raises:
        ValueError: the patches do not cover the image.
    """
    img_size, patch_size = pair(img_size), pair(patch_size)
    if any(side % patch for side, patch in zip(img_size, patch_size, strict=True)):
        raise ValueError(f"img_size must be divisible by patch_size {patch_size}, got {img_size}")
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]


def init_weights(module: nn.Module, name: str = "") -> None:
    """timm's initialisation of its vision-MLPs: children first, so that a parent's own one wins."""
    for child_name, child in module.named_children():
        init_weights(child, f"{name}.{child_name}".lstrip("."))
    if isinstance(module, nn.Conv2d):
        _lecun_normal(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear) and name == "head":
        # Training starts from even odds.
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if "mlp" in name:
            nn.init.normal_(module.bias, std=1e-6)
        else:
            nn.init.zeros_(module.bias)
    elif hasattr(module, "init_weights"):
        module.init_weights()


def _lecun_normal(weight: Tensor) -> None:
    """Variance 1 / fan_in; the truncation at two deviations takes a known part of it away."""
    std = 1 / math.sqrt(weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight)
    with torch.no_grad():
        weight.mul_(std)
