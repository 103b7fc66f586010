"""Bilinear resizing of maps."""

import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize maps (B, C, h, w) to (B, C, *size) bilinearly, `align_corners=False`; return them as they are if equal."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
