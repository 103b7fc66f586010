"""Losses of maps of ids (LDMSeg, Sec. 3.2): which id a point has, and the shape of each segment.

Shapes: B images, N ids, logits of h x w, ids of H x W, G_b segments in image b, P points. Id 0 is void.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dformer.losses.criterion import dice_loss, mask_bce
from dformer.losses.normalisers import normaliser
from dformer.losses.points import sample_logits, sample_targets, uncertain_points


class IdTarget(NamedTuple):
    """Hold an image's ground truth: `ids` (H, W) int64, and the id of each segment, `present` (G,), 0 for none."""

    ids: Tensor
    present: Tensor


class PointSettings(NamedTuple):
    """Hold how points are drawn: their number, candidates a point, and the share that is chosen by uncertainty."""

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75


def id_map_losses(
    logits: Tensor, targets: list[IdTarget], points: PointSettings, generators: list[torch.Generator]
) -> dict[str, Tensor]:
    """Compute `loss_ce`, `loss_mask` and `loss_dice`, to be summed; finite for images without a segment.

    Cross-entropy is the mean over the points that are not void; the others are sums over all segments of the batch,
    divided by their number. (Both numbers are means over the processes; published, only the latter.)

    Args:
        logits: (B, N, h, w).
        generators: of the points, one an image.
    """
    with torch.autocast(logits.device.type, enabled=False):  # sums over points leave float16's range
        totals = torch.zeros(5, device=logits.device)
        for image, target, generator in zip(logits.float(), targets, generators, strict=True):
            totals = totals + torch.stack(
                [*_classification(image, target, points, generator), *_shapes(image, target, points, generator)]
            )
        ce, valid, bce, dice, segments = totals.unbind()
        valid, segments = normaliser(torch.stack([valid, segments]), minimum=1)
        return {"loss_ce": ce / valid, "loss_mask": bce / segments, "loss_dice": dice / segments}


def _classification(
    logits: Tensor, target: IdTarget, settings: PointSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the points of an image that are not void, and their number."""
    at = partial(sample_channels, logits[None])
    points = uncertain_points(at, 1, *settings, generator, uncertainty=top_two_uncertainty)
    return point_cross_entropy(at(points), sample_ids(target.ids[None], points))


def _shapes(
    logits: Tensor, target: IdTarget, settings: PointSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy and dice summed over the segments of an image, and their number."""
    if len(target.present) == 0:
        return 0 * logits.sum(), 0 * logits.sum(), 0 * logits.sum()
    counts = (target.present > 0).float()
    predicted = logits[target.present]  # (G, h, w): the channel of an id is the mask of its segment
    points = uncertain_points(partial(sample_logits, predicted.detach()), len(predicted), *settings, generator)
    masks = target.ids == target.present[:, None, None]  # (G, H, W)
    truth = sample_targets(masks, torch.arange(len(masks), device=masks.device), points)
    at_points = sample_logits(predicted, points)
    return (counts * mask_bce(at_points, truth)).sum(), (counts * dice_loss(at_points, truth)).sum(), counts.sum()


def point_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy summed over points that are not void, and their number: (B, N, P), (B, P) int64."""
    return F.cross_entropy(logits, labels, ignore_index=0, reduction="sum"), (labels != 0).sum().float()


def top_two_uncertainty(logits: Tensor) -> Tensor:
    """Return how uncertain a point's id is (B, P), of logits (B, N, P): minus the distance of the highest two."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return second - first


def sample_channels(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps (B, N, h, w) bilinearly at points (B, P, 2) in [0, 1] -> (B, N, P)."""
    return F.grid_sample(maps, (2 * points - 1)[:, :, None], align_corners=False)[..., 0]


def sample_ids(ids: Tensor, points: Tensor) -> Tensor:
    """Sample maps of ids (B, H, W) at the pixels nearest to points (B, P, 2) in [0, 1] -> (B, P) int64."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(ids[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0, :, 0].long()
