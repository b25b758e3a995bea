"""A picture to look at: the user's, one that matplotlib brings along, or one drawn here."""

import math

import torch
from torch import Tensor

from ._console import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def picture(path: str | None, side: int) -> tuple[Tensor, str]:
    """``((3, side, side) normalised, what it shows)``."""
    if path is not None:
        return _read(path, side), path
    try:
        from matplotlib.cbook import get_sample_data

        with get_sample_data("grace_hopper.jpg") as file:
            return _read(file, side), "matplotlib's photograph of Grace Hopper"
    except ImportError:
        return _normalised(
            _rings(side)
        ), "drawn rings (matplotlib, which has a photograph, is absent)"


def _read(file, side: int) -> Tensor:
    """The middle square, scaled; needs pillow."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UserError("reading a picture needs pillow: pip install pillow") from None
    try:
        image = Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"--image {file}: {error}") from None
    edge = min(image.size)
    left, top = ((size - edge) // 2 for size in image.size)
    image = image.crop((left, top, left + edge, top + edge)).resize((side, side))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return _normalised(pixels.view(side, side, 3).permute(2, 0, 1) / 255)


def _normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (image - mean) / std


def _rings(side: int) -> Tensor:
    """Coloured rings around three centres, (3, side, side) in [0, 1]."""
    axis = torch.linspace(-1, 1, side)
    centres = ((0.0, 0.0), (0.5, -0.3), (-0.4, 0.6))
    radii = [torch.hypot(axis[:, None] - y, axis[None, :] - x) for y, x in centres]
    return torch.stack([0.5 + 0.5 * torch.cos(8 * math.pi * radius) for radius in radii])
