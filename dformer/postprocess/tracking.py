"""Tracks by association: segments of a frame take the ids of the tracks that they overlap.

The baseline of tracking by any image model: a state and a frame's segments in, ids and a state out. The state is a mask
for each track, so memory does not grow with the video.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment

MIN_IOU = 0.2
MAX_HIDDEN = 5  # frames


class Tracks(NamedTuple):
    """Hold the tracks that may go on: masks where each was last seen, run-length encoded as COCO's, and, of the same
    length, ids, classes and for how many frames they have been hidden; and the id of the next new track."""

    masks: tuple[dict[str, Any], ...] = ()
    ids: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    next_id: int = 1


def associate(tracks: Tracks, masks: NDArray[np.bool_], classes: Sequence[int]) -> tuple[list[int], Tracks]:
    """Return the track ids of a frame's segments, and the tracks after it.

    Segments and tracks of one class are assigned to each other by the largest sum of IoU; a segment that is left over
    begins a track. A track that is hidden for more than `MAX_HIDDEN` frames has ended.

    Args:
        tracks: those of the frame before; `Tracks()` at the first.
        masks: (S, H, W). Masks of another size than those of the frame before are new.
        classes: of each segment.
    """
    found = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    iou = np.zeros((len(found), len(tracks.ids)))
    if iou.size:
        iou[:] = rle.iou(found, list(tracks.masks), [0] * len(tracks.ids))  # -1 for another size
        iou *= np.equal.outer(classes, tracks.classes)
    ids, next_id = [0] * len(found), tracks.next_id
    for segment, track in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
        if iou[segment, track] >= MIN_IOU:
            ids[segment] = tracks.ids[track]
    for segment in range(len(ids)):
        if not ids[segment]:
            ids[segment], next_id = next_id, next_id + 1
    kept = [k for k, i in enumerate(tracks.ids) if i not in ids and tracks.hidden[k] < MAX_HIDDEN]
    return ids, Tracks(
        (*found, *(tracks.masks[k] for k in kept)),
        (*ids, *(tracks.ids[k] for k in kept)),
        (*classes, *(tracks.classes[k] for k in kept)),
        (*(0 for _ in ids), *(tracks.hidden[k] + 1 for k in kept)),
        next_id,
    )
