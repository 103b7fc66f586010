"""Bilinear resizing of maps."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize maps (B, C, h, w) to (B, C, *size) bilinearly, `align_corners=False`; return them as they are if equal."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def aligned_upsample(maps: Tensor, factor: int) -> Tensor:
    """Upsample maps (B, C, h, w) bilinearly to (B, C, factor * h, factor * w): cell i is at pixel factor * (i + 1/2).

    That is half a pixel further than for `resize`. CondInst's masks and the mask losses that go with them use it.
    """
    for dim in (3, 2):  # columns, which are further apart in memory, while there are few rows
        size = maps.shape[dim]
        place = (torch.arange(factor * size, device=maps.device) - factor // 2).clamp(min=0) / factor
        below = place.long()
        above = (below + 1).clamp(max=size - 1)
        weight = (place - below).to(maps.dtype)
        ends = maps.index_select(dim, below), maps.index_select(dim, above)
        maps = torch.lerp(*ends, weight[:, None] if dim == 2 else weight)
    return maps
