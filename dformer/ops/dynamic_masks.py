"""Mask heads whose weights are predicted (CondInst, Tian et al. 2020, Sec. 3; DiffusionInst, Gu et al. 2022, Sec. 3.3).

A head has three 1x1 convolutions, C -> C -> C -> 1, with ReLU between them. It is a vector of P = 2 C^2 + 3 C + 1
numbers: the weights of the three, each row-major (out, in), then their biases.
"""

import torch
from torch import Tensor


def num_dynamic_parameters(channels: int) -> int:
    """Return P, the numbers in a head over that many channels."""
    return sum(_sizes(channels))


def dynamic_masks(kernels: Tensor, features: Tensor) -> Tensor:
    """Run heads (..., n, P) over mask features (..., C, h, w) and return the mask logits (..., n, h, w)."""
    heads, (channels, height, width) = kernels.shape[:-1], features.shape[-3:]
    weight1, weight2, weight3, bias1, bias2, bias3 = kernels.split(_sizes(channels), dim=-1)
    weight1 = weight1.unflatten(-1, (channels, channels)).flatten(-3, -2)
    x = weight1 @ features.flatten(-2) + bias1.flatten(-2)[..., None]  # (..., n * C, h * w)
    x = x.relu_().unflatten(-2, (-1, channels)).flatten(0, -3)
    weight2, weight3, bias2, bias3 = (part.flatten(0, -2) for part in (weight2, weight3, bias2, bias3))
    x = torch.baddbmm(bias2[:, :, None], weight2.unflatten(1, (channels, channels)), x).relu_()  # (n, C, h * w)
    return torch.baddbmm(bias3[:, :, None], weight3[:, None], x).view(*heads, height, width)


def aligned_upsample(maps: Tensor, factor: int) -> Tensor:
    """Upsample maps (B, C, h, w) bilinearly to (B, C, factor * h, factor * w): cell i is at pixel factor * (i + 1/2).

    That is half a pixel further than for `layers.resize.resize`. The masks here, and the losses on them, use it.
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


def _sizes(channels: int) -> list[int]:
    return [channels**2, channels**2, channels, channels, channels, 1]
