"""Points at which masks are compared (PointRend, Kirillov et al. 2020, Sec. 3; Mask2Former, Sec. 3.3).

Shapes: M masks of H x W, P points a mask. Points are x, y in [0, 1], (0, 0) the upper left corner of the mask.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_logits(masks: Tensor, points: Tensor) -> Tensor:
    """Values of masks (M, H, W), float, bilinearly at points (M, P, 2) -> (M, P); differentiable."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(masks[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]


def sample_map(features: Tensor, points: Tensor) -> Tensor:
    """Values of features (C, H, W) bilinearly at points (P, 2) -> (C, P) float32; outside they are 0."""
    grid = (2 * points - 1)[None, :, None]
    return F.grid_sample(features[None].float(), grid, padding_mode="zeros", align_corners=False)[0, :, :, 0]


@torch.no_grad()
def sample_targets(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Values of `masks[index]` bilinearly at points, without a copy of the masks.

    Args:
        masks: (G, H, W) bool, G > 0.
        index: (M,) into the G masks.
        points: (M, P, 2).

    Returns:
        (M, P) float32 in [0, 1]; outside of a mask is 0.
    """
    height, width = masks.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    flat = masks.flatten()
    values = torch.zeros_like(x)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + dx, top + dy
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        values += flat[index[:, None] * (height * width) + cell] * (weight * inside)
    return values


def random_points(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform points (*shape, 2)."""
    return torch.rand(*shape, 2, generator=generator, device=generator.device)


def uncertainty(logits: Tensor) -> Tensor:
    """How near a mask logit is to the decision boundary: the larger, the less certain."""
    return -logits.abs()


@torch.no_grad()
def uncertain_points(
    logits_at: Callable[[Tensor], Tensor],
    num_masks: int,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Points (M, P, 2): of P x `oversample_ratio` random candidates the most uncertain ones, the rest at random.

    Args:
        logits_at: points (M, Q, 2) -> mask logits there (M, Q).
        importance_sample_ratio: share of the P points that are chosen by uncertainty.
    """
    candidates = random_points((num_masks, int(num_points * oversample_ratio)), generator)
    num_uncertain = int(num_points * importance_sample_ratio)
    best = uncertainty(logits_at(candidates)).topk(num_uncertain, dim=1).indices
    chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, random_points((num_masks, num_points - num_uncertain), generator)], dim=1)
