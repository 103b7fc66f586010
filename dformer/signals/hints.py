"""Hints: masks from which some of the noisy slots are made, so that a denoiser learns to listen to its input.

With free matching nothing ties a slot to the mask that it was noised from, and a model learns to ignore its noise
(docs/systems/dformer.md). With denoising assignment, after DN-DETR (Li et al. 2022), a slot that carries a hint has to
answer with the hint's object.

Shapes: N slots, G ground-truth masks, noise h x w. No function waits for the device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FREE, NO_OBJECT = -2, -1  # beside the indices of objects, the values of `Hints.owner`
MAX_SHIFT = 2  # cells
MIN_OVERLAP = 0.4  # IoU from which on a hint is taken to show an object
DUPLICATE = 0.5  # IoU with a better hint from which on a hint is dropped


class Hints(NamedTuple):
    """Hold what N slots are made from: `masks` (N, h, w) in [0, 1], and `owner` (N,) int64, whom they show.

    An owner is an object, 0..G-1, or NO_OBJECT; a slot without a hint is FREE, and its mask means nothing.
    """

    masks: Tensor
    owner: Tensor


def given_hints(masks: list[Tensor], num_slots: int) -> Hints:
    """Return the hints (B, N, ...) of B times masks (M, h, w), M at most N: mask k is in slot k, other slots free."""
    padded = [F.pad(x.float(), (0, 0, 0, 0, 0, num_slots - len(x))) for x in masks]
    slots = torch.arange(num_slots, device=masks[0].device)
    owner = [torch.where(slots < len(x), slots, FREE) for x in masks]
    return Hints(torch.stack(padded), torch.stack(owner))


def true_hints(masks: Tensor, num_slots: int, generator: torch.Generator) -> Hints:
    """Return hints of a random share of the true masks (G, h, w), each perturbed, in random slots."""
    size = max(len(masks), num_slots)
    left_out = 0.7 * torch.rand(2, generator=generator, device=masks.device)
    share = torch.where(left_out[0] < 0.5, left_out[1], 0)  # in the other images, all are given
    owner = torch.arange(size, device=masks.device)
    perturbed = F.pad(perturb(masks, generator), (0, 0, 0, 0, 0, size - len(masks)))
    given = torch.rand(size, generator=generator, device=masks.device) >= share
    owner = torch.where(given & perturbed.flatten(1).any(1), owner, FREE)
    slots = torch.randperm(size, generator=generator, device=masks.device)[:num_slots]
    return Hints(perturbed[slots], owner[slots])


def own_hints(masks: Tensor, scores: Tensor, truth: Tensor, threshold: Tensor) -> Hints:
    """Return the hints that a model makes itself, with its errors, duplicates and misses.

    Args:
        masks: the predicted ones, (N, h, w) in [0, 1].
        scores: (N,).
        truth: true masks (G, h, w) in [0, 1]. The hint that overlaps an object most shows it, the others do not.
        threshold: a scalar; slots of lower scores are free.
    """
    hints = (masks > 0.5).float()
    given = (scores > threshold) & ~has_better_duplicate(hints, scores)
    overlap = mask_iou(hints, F.pad(truth > 0.5, (0, 0, 0, 0, 0, 1))) * given[:, None]  # (N, G + 1), the last 0
    iou, owner = overlap.max(1)
    is_best = overlap.max(0).indices[owner] == torch.arange(len(masks), device=masks.device)
    owner = torch.where(is_best & (iou > MIN_OVERLAP), owner, NO_OBJECT)
    return Hints(hints, torch.where(given, owner, FREE))


def has_better_duplicate(masks: Tensor, scores: Tensor) -> Tensor:
    """Tell which masks (N, h, w), 0 or 1, are empty or overlap one of a higher score: (N,) bool.

    This is Fast NMS (YOLACT, Bolya et al. 2019, Sec. 4.2), on masks: all are compared at once.
    """
    better = scores > scores[:, None]  # of two masks of one score both are kept
    duplicate = (mask_iou(masks, masks) > DUPLICATE) & better
    return duplicate.any(1) | ~masks.flatten(1).any(1)


def mask_iou(first: Tensor, other: Tensor) -> Tensor:
    """Compute the IoU (N, M) of masks (N, h, w) and (M, h, w), 0 or 1; 0 where both are empty."""
    first, other = first.flatten(1).float(), other.flatten(1).float()
    intersection = first @ other.T
    union = first.sum(1)[:, None] + other.sum(1) - intersection
    return intersection / union.clamp(min=1)


def perturb(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Return masks (G, h, w), each as it is, dilated or eroded by a cell, or its box, and half of them shifted."""
    device, (count, height, width) = masks.device, masks.shape
    kind = torch.rand(count, 1, 1, generator=generator, device=device)
    dilated = F.max_pool2d(masks[:, None], 3, 1, 1)[:, 0]
    eroded = -F.max_pool2d(-masks[:, None], 3, 1, 1)[:, 0]
    result = torch.where(kind < 0.4, masks, dilated)
    result = torch.where(kind > 0.6, eroded, result)
    result = torch.where(kind > 0.7, fill_boxes(masks), result)
    shifts = torch.rand(count, 3, generator=generator, device=device)
    steps = ((2 * MAX_SHIFT + 1) * shifts[:, :2]).long() - MAX_SHIFT  # (G, 2) in -MAX_SHIFT..MAX_SHIFT
    steps = torch.where(shifts[:, 2:] < 0.5, steps, 0)
    rows = (torch.arange(height, device=device) + steps[:, :1]).clamp(0, height - 1)[:, :, None]
    columns = (torch.arange(width, device=device) + steps[:, 1:]).clamp(0, width - 1)[:, None]
    return result.gather(1, rows.expand(-1, -1, width)).gather(2, columns.expand(-1, height, -1))


def fill_boxes(masks: Tensor) -> Tensor:
    """Return the filled tight boxes (G, h, w), 0 or 1, of masks (G, h, w); empty ones stay empty."""

    def between(inside: Tensor) -> Tensor:
        return inside.cummax(1).values * inside.flip(1).cummax(1).values.flip(1)

    inside = (masks > 0.5).float()
    return between(inside.amax(2))[:, :, None] * between(inside.amax(1))[:, None]
