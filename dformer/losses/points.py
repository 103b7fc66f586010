"""Points at which masks are compared (PointRend, Kirillov et al. 2020, Sec. 3; Mask2Former, Sec. 3.3).

Shapes: M masks of H x W, P points per mask. Points are x, y in [0, 1], (0, 0) the upper left corner of the mask.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MASKS_AT_ONCE = 32  # masks whose points are drawn or sampled together, which needs most of the memory


def sample_logits(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks (M, H, W), float, bilinearly at points (M, P, 2) -> (M, P); differentiable."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(masks[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]


def sample_map(features: Tensor, points: Tensor) -> Tensor:
    """Sample features (H, W, C) bilinearly at points (P, 2) -> (C, P) float32; outside they are 0."""
    batch = features.float().permute(2, 0, 1)[:, None]  # threads work on items, not channels
    grid = (2 * points - 1)[None, :, None].expand(len(batch), -1, -1, -1)
    return F.grid_sample(batch, grid, padding_mode="zeros", align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def sample_targets(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Sample `masks[index]` bilinearly at points, without a float copy of the masks.

    Args:
        masks: (G, H, W) bool, G > 0.
        index: (M,) into the G masks.
        points: (M, P, 2), in [0, 1].

    Returns:
        (M, P) float32 in [0, 1]; outside of a mask is 0.
    """
    height, width = masks.shape[1:]
    pixels = F.pad(masks, (1, 1, 1, 1)).flatten()
    extent = torch.tensor([width, height]).to(points, non_blocking=True)
    values = []
    for some, at in zip(index.split(MASKS_AT_ONCE), points.split(MASKS_AT_ONCE), strict=True):
        position = at * extent + 0.5
        corner = position.floor()
        right, down = (position - corner).unbind(-1)
        x, y = corner.long().unbind(-1)
        top_left = (some[:, None] * (height + 2) + y) * (width + 2) + x
        above, below = (
            torch.lerp(pixels[left].to(right.dtype), pixels[left + 1].to(right.dtype), right)
            for left in (top_left, top_left + width + 2)
        )
        values.append(torch.lerp(above, below, down))
    return torch.cat(values)


def random_points(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw uniform points (*shape, 2)."""
    return torch.rand(*shape, 2, generator=generator, device=generator.device)


def uncertainty(logits: Tensor) -> Tensor:
    """Compute how uncertain mask logits are: the larger, the nearer to the decision boundary."""
    return -logits.abs()


@torch.no_grad()
def uncertain_points(
    logits_at: Callable[[Tensor], Tensor],
    num_masks: int,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator,
    uncertainty: Callable[[Tensor], Tensor] = uncertainty,
) -> Tensor:
    """Draw points (M, P, 2): the most uncertain of P x `oversample_ratio` random candidates, and some at random.

    Args:
        logits_at: computes mask logits (M, Q) at points (M, Q, 2).
        importance_sample_ratio: share of the P points that are chosen by uncertainty.
        uncertainty: of the logits, (M, Q).
    """
    candidates = random_points((num_masks, int(num_points * oversample_ratio)), generator)
    num_uncertain = int(num_points * importance_sample_ratio)
    best = uncertainty(logits_at(candidates)).topk(num_uncertain, dim=1, sorted=False).indices
    chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, random_points((num_masks, num_points - num_uncertain), generator)], dim=1)
