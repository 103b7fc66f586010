"""Boxes as a signal: pad, scale, add noise (DiffusionDet, Chen et al. 2022, Sec. 3.3; DiffusionInst, Alg. 1).

Shapes: G ground-truth boxes, N noisy boxes; leading dimensions (...) are free.
Units: the signal is centre, width and height as shares of the unpadded image, mapped from [0, 1] to [-b, b]; outside
of the diffusion, boxes are x0 y0 x1 y1 in pixels. `extent` (..., 4) is width, height, width, height of the image.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert

from dformer.signals.masks import to_signal, to_unit

MIN_SIZE = 1e-4  # of a random box, as a share of the image


def boxes_to_signal(boxes: Tensor, extent: Tensor, scale: float) -> Tensor:
    """Map boxes (..., 4) in pixels to the signal; what leaves [-b, b] is clamped."""
    shares = box_convert(boxes / extent, "xyxy", "cxcywh")
    return to_signal(shares, scale).clamp(-scale, scale)


def signal_to_boxes(signal: Tensor, extent: Tensor, scale: float) -> Tensor:
    """Map a signal (..., 4), clamped to [-b, b], to boxes in pixels; their corners may leave the image."""
    return box_convert(to_unit(signal, scale), "cxcywh", "xyxy") * extent


def pad_boxes(shares: Tensor, normals: Tensor) -> Tensor:
    """Return ground-truth boxes (G, 4), as shares of the image, and after them one for each row of `normals`.

    Without ground truth, the whole image stands for it. Random boxes are normal around the centre with a deviation of
    1/6 in all four numbers, and have at least MIN_SIZE.
    """
    if len(shares) == 0:
        shares = torch.tensor([[0.5, 0.5, 1, 1]]).to(shares, non_blocking=True)
    random = normals / 6 + 0.5
    random = torch.cat([random[:, :2], random[:, 2:].clamp(min=MIN_SIZE)], dim=1)
    return torch.cat([shares, random])


def initial_boxes(shares: Tensor, num_boxes: int, generator: torch.Generator) -> Tensor:
    """Return N boxes (N, 4), as shares of the image: `shares` (G, 4) padded with random ones, or a random N of them."""
    if len(shares) > num_boxes:
        return shares[torch.randperm(len(shares), generator=generator, device=shares.device)[:num_boxes]]
    missing = num_boxes - max(len(shares), 1)
    return pad_boxes(shares, torch.randn(missing, 4, generator=generator, device=shares.device))
