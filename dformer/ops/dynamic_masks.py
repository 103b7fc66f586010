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
    """Run heads (n, P) over mask features (C, h, w) and return the mask logits (n, h, w)."""
    n, (channels, height, width) = len(kernels), features.shape
    weight1, weight2, weight3, bias1, bias2, bias3 = kernels.split(_sizes(channels), dim=1)
    x = weight1.reshape(n * channels, channels) @ features.flatten(1) + bias1.reshape(-1, 1)  # (n * C, h * w)
    x = x.relu_().unflatten(0, (n, channels))
    x = torch.baddbmm(bias2[:, :, None], weight2.unflatten(1, (channels, channels)), x).relu_()  # (n, C, h * w)
    return torch.baddbmm(bias3[:, :, None], weight3[:, None], x).view(n, height, width)


def _sizes(channels: int) -> list[int]:
    return [channels**2, channels**2, channels, channels, channels, 1]
