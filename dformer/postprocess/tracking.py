"""Tracks by association: segments of a frame take the ids of the tracks that they overlap.

The baseline of tracking by any image model: a state and a frame's segments in, ids and a state out. The state is a mask
for each track, so memory does not grow with the video.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MIN_IOU = 0.2
MAX_HIDDEN = 5  # frames


class Tracks(NamedTuple):
    """Hold the tracks that may go on: masks where each was last seen (M, H, W) bool, and, of length M, ids, classes and
    for how many frames they have been hidden; and the id of the next new track."""

    masks: Tensor
    ids: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    next_id: int = 1


def associate(tracks: Tracks | None, masks: Tensor, classes: Sequence[int]) -> tuple[list[int], Tracks]:
    """Return the track ids of a frame's segments, and the tracks after it.

    Segments and tracks of one class are assigned to each other by the largest sum of IoU; a segment that is left over
    begins a track. A track that is hidden for more than `MAX_HIDDEN` frames has ended.

    Args:
        tracks: those of the frame before; None at the first.
        masks: (S, H, W) bool.
        classes: of each segment.
    """
    if tracks is None or tracks.masks.shape[1:] != masks.shape[1:]:
        tracks = Tracks(masks[:0], next_id=1 if tracks is None else tracks.next_id)
    x, y = masks.flatten(1).float(), tracks.masks.flatten(1).float()
    shared = x @ y.T  # (S, M)
    iou = (shared / (x.sum(1)[:, None] + y.sum(1) - shared).clamp(min=1)).cpu()
    is_same = torch.tensor(classes).reshape(-1, 1) == torch.tensor(tracks.classes).reshape(1, -1)
    iou = torch.where(is_same, iou, 0)
    ids, next_id = [0] * len(classes), tracks.next_id
    for segment, track in zip(*linear_sum_assignment(-iou.numpy()), strict=True):
        if iou[segment, track] >= MIN_IOU:
            ids[segment] = tracks.ids[track]
    for segment in range(len(ids)):
        if not ids[segment]:
            ids[segment], next_id = next_id, next_id + 1
    kept = [k for k, i in enumerate(tracks.ids) if i not in ids and tracks.hidden[k] < MAX_HIDDEN]
    return ids, Tracks(
        torch.cat([masks, tracks.masks[kept]]),
        (*ids, *(tracks.ids[k] for k in kept)),
        (*classes, *(tracks.classes[k] for k in kept)),
        (*(0 for _ in ids), *(tracks.hidden[k] + 1 for k in kept)),
        next_id,
    )
