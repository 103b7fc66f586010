"""Predictions -> results of a batch whose shapes no value changes: what an exported model can compute.

Results are those of `queries`, `boxes`, `label_maps` and `id_maps`, at the size of the canvas. They have S slots; a
slot without a segment or an object has the class -1 and the score 0. A panoptic map has k + 1 in the segment of slot k.

Shapes: B images of H x W (padded), N masks, K classes. `things` is (K,) bool.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from dformer.ops.dynamic_masks import aligned_upsample, dynamic_masks
from dformer.postprocess.boxes import STRIDE
from dformer.postprocess.id_maps import SegmentThresholds
from dformer.postprocess.queries import boxes_of

Results = dict[str, Tensor]


def query_semantic(logits: Tensor, masks: Tensor) -> Results:
    """Return `sem_seg` (B, K, H, W) of class logits (B, N, K + 1) and mask logits (B, N, H, W)."""
    return {"sem_seg": torch.einsum("bnk,bnhw->bkhw", logits.softmax(-1)[..., :-1], masks.sigmoid())}


def query_panoptic(
    logits: Tensor, masks: Tensor, things: Tensor, object_threshold: float, overlap_threshold: float
) -> Results:
    """Return `panoptic_map` (B, H, W) int64, `classes` (B, N) and `scores` (B, N), as `queries.PanopticMap` does."""
    scores, classes = logits.softmax(-1).max(-1)  # (B, N)
    found = (classes < len(things)) & (scores > object_threshold)
    probability = masks.sigmoid()
    inside = probability >= 0.5
    weighted = torch.where(found[:, :, None, None], scores[:, :, None, None] * probability, -1)
    winner = weighted.argmax(1)  # (B, H, W)
    visible = inside.gather(1, winner[:, None])[:, 0]
    won, shown = (_slot_sums(x, winner, scores) for x in (torch.ones_like(winner), visible))
    kept = found & (shown > 0) & (won / inside.sum((2, 3)).clamp(min=1) >= overlap_threshold)
    return _merged(torch.where(visible, winner, -1), kept, classes.clamp(max=len(things) - 1), scores, things)


def query_instances(logits: Tensor, masks: Tensor, things: Tensor, top_k: int) -> Results:
    """Return `masks` (B, S, H, W) bool, `boxes` (B, S, 4), `scores` and `classes` (B, S), as `queries.Instances` does.

    S is `top_k`, or N * K if that is less; slots are by falling score.
    """
    probability = logits.softmax(-1)[..., :-1].flatten(1)  # (B, N * K)
    scores, index = probability.topk(min(top_k, logits.shape[1] * len(things)))
    inside = masks > 0
    certainty = (masks.sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)  # (B, N)
    classes, source = index % len(things), index // len(things)
    scores = torch.where(things[classes], scores * certainty.gather(1, source), 0)
    scores, order = scores.sort(descending=True)
    classes, source = torch.where(scores > 0, classes.gather(1, order), -1), source.gather(1, order)
    chosen = inside.gather(1, source[:, :, None, None].expand(-1, -1, *masks.shape[2:]))
    boxes = boxes_of(chosen.flatten(0, 1)).unflatten(0, chosen.shape[:2])
    return {"masks": chosen, "boxes": boxes, "scores": scores, "classes": classes}


def box_instances(found: dict[str, Tensor], canvas: tuple[int, int], threshold: float, top_k: int) -> Results:
    """Return `masks`, `boxes`, `scores` and `classes` as `query_instances`, S being `top_k`, of scored boxes.

    Args:
        found: `boxes` (B, n, 4), `scores` and `classes` (B, n), `kernels` (B, n, P), `mask_features` (B, C, H/4, W/4).
        threshold: of the non-maximum suppression, for each image and class by itself.
    """
    boxes, scores, classes = found["boxes"], found["scores"], found["classes"]
    # Moved apart, boxes of other images and classes do not overlap (as in `torchvision.ops.batched_nms`).
    group = torch.arange(boxes.shape[0], device=boxes.device)[:, None] * (classes.max() + 1) + classes
    apart = boxes - boxes.min() + (boxes.max() - boxes.min() + 1) * group[..., None]
    survivors = nms(apart.flatten(0, 1), scores.flatten(), threshold)
    kept = torch.zeros_like(scores.flatten()).index_fill(0, survivors, 1).view_as(scores) > 0
    extent = torch.tensor([canvas[1], canvas[0], canvas[1], canvas[0]]).to(boxes, non_blocking=True)
    boxes = torch.minimum(boxes.clamp(min=0), extent)
    scores, index = torch.where(kept, scores, 0).topk(min(top_k, scores.shape[1]))
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    kernels = found["kernels"].gather(1, index[..., None].expand(-1, -1, found["kernels"].shape[2]))
    masks = aligned_upsample(dynamic_masks(kernels, found["mask_features"]).sigmoid(), STRIDE)  # (B, S, H, W)
    left, top, right, bottom = boxes.trunc()[..., None].unbind(2)  # (B, S, 1)
    y, x = (torch.arange(side, device=boxes.device) for side in canvas)
    in_rows, in_columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    kept = (scores > 0) & (boxes[..., 2:] > boxes[..., :2]).all(2)
    masks = (masks > 0.5) & in_rows[..., None] & in_columns[:, :, None] & kept[..., None, None]
    classes = torch.where(kept, classes.gather(1, index), -1)
    return {"masks": masks, "boxes": boxes, "scores": torch.where(kept, scores, 0), "classes": classes}


def label_panoptic(
    classes: Tensor, ids: Tensor, confidence: Tensor, things: Tensor, num_ids: int, min_area: int, min_score: float
) -> Results:
    """Return `panoptic_map`, `classes` and `scores` as `query_panoptic`, as `label_maps` does; S is `num_ids` + K.

    Args:
        classes, ids: maps (B, H, W) int64; 0 is none, class k is k + 1.
        confidence: (B, H, W).
        min_area, min_score: of `label_maps.majority_vote` and `label_maps.find_segments`.
    """
    batch, num_classes = classes.shape[0], len(things) + 1
    pairs = (ids * num_classes + classes).flatten(1)
    votes = confidence.new_zeros(batch, num_ids * num_classes).scatter_add(
        1, pairs, torch.ones_like(confidence).flatten(1)
    )
    votes = votes.view(batch, num_ids, num_classes)
    winner = torch.where(votes.sum(2) < min_area, 0, votes.argmax(2))  # (B, num_ids)
    classes = winner.gather(1, ids.flatten(1)).view_as(ids)
    is_stuff = F.pad(~things, (1, 0))[classes]
    slots = torch.where(is_stuff, num_ids + classes - 1, ids)  # stuff of one class is one segment, whatever its ids
    slots = torch.where((ids > 0) & (classes > 0), slots, -1)
    areas, total = (_slot_sums(x, slots, confidence, num_ids + num_classes - 1) for x in (slots >= 0, confidence))
    scores = total / areas.clamp(min=1)
    kept = (areas > 0) & (scores >= min_score)
    stuff = torch.arange(num_classes - 1, device=ids.device).expand(batch, -1)
    return _segments(slots, kept, torch.cat([winner - 1, stuff], dim=1), scores)


def id_panoptic(logits: Tensor, class_scores: Tensor, things: Tensor, thresholds: SegmentThresholds) -> Results:
    """Return `panoptic_map`, `classes` and `scores` as `query_panoptic`, as `id_maps` does.

    Args:
        logits: (B, N, H, W) of the ids; id 0 is void.
        class_scores: (B, N, K).
    """
    (probability, second), (best, _) = (x.unbind(1) for x in logits.softmax(1).topk(2, dim=1))  # (B, H, W)
    is_void = (probability < thresholds.probability) | (probability - second < thresholds.margin)
    slots = torch.where(is_void | (best == 0), -1, best)
    areas, total = (_slot_sums(x, slots, logits, logits.shape[1]) for x in (slots >= 0, probability))
    inside = (logits >= thresholds.logit).sum((2, 3))
    kept = (areas >= max(thresholds.area, 1)) & (areas >= thresholds.overlap * inside)
    return _merged(slots, kept, class_scores.argmax(2), total / areas.clamp(min=1), things)


def _slot_sums(values: Tensor, slots: Tensor, like: Tensor, count: int | None = None) -> Tensor:
    """Return the sums (B, S) of maps (B, H, W) over the pixels of each slot, in the dtype of `like`; -1 is no slot."""
    sums = like.new_zeros(slots.shape[0], (count or like.shape[1]) + 1)
    return sums.scatter_add(1, slots.flatten(1) + 1, values.flatten(1).to(like.dtype))[:, 1:]


def _merged(slots: Tensor, kept: Tensor, classes: Tensor, scores: Tensor, things: Tensor) -> Results:
    """Return the segments of `_segments`; those of a stuff class become one, the first of them, with the best score."""
    place = torch.arange(kept.shape[1], device=kept.device)
    same = (classes[:, :, None] == classes[:, None]) & kept[:, None]  # (B, S, S)
    is_thing = things[classes]
    owner = torch.where(is_thing, place, same.int().argmax(2))
    best = torch.where(is_thing, scores, torch.where(same, scores[:, None], 0).amax(2))
    owners = F.pad(torch.where(kept, owner, -1), (1, 0), value=-1)  # of -1, 0, 1, ...
    slots = owners.gather(1, slots.flatten(1) + 1).view_as(slots)
    return _segments(slots, kept & (owner == place), classes, best)


def _segments(slots: Tensor, kept: Tensor, classes: Tensor, scores: Tensor) -> Results:
    """Return the map of slots (B, H, W), -1 for none, and classes and scores (B, S), of those that are kept."""
    numbers = F.pad(torch.where(kept, torch.arange(1, kept.shape[1] + 1, device=kept.device), 0), (1, 0))
    panoptic_map = numbers.gather(1, slots.flatten(1) + 1).view_as(slots)
    return {
        "panoptic_map": panoptic_map,
        "classes": torch.where(kept, classes, -1),
        "scores": torch.where(kept, scores, 0),
    }
