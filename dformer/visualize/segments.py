"""Segments: the one form of results and ground truth that pictures, comparisons and JSON files are made from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dformer.visualize.arrays import Bools, Floats, Ints

INSTANCE_THRESHOLD = 0.5  # default min. score of the instances that are shown


class Segment(NamedTuple):
    """Hold a segment of a result or of the ground truth."""

    mask: Bools  # (H, W)
    category_id: int  # in 0..K-1
    score: float | None = None  # in [0, 1]
    is_thing: bool = True  # an object (a thing) or an amorphous region (stuff)
    is_crowd: bool = False  # a group of objects annotated as one
    track: int | None = None  # in a video: the object's number, from 1


def panoptic_segments(segment_map: Ints, infos: Iterable[Mapping[str, Any]]) -> Iterator[Segment]:
    """Yield the segments of a panoptic map (H, W) of segment ids.

    `infos`: "id" and "category_id" of each segment, and optionally "score", "isthing", "iscrowd" and
    "track_id".
    """
    for info in infos:
        is_thing, is_crowd = bool(info.get("isthing", True)), bool(info.get("iscrowd", False))
        mask, track = segment_map == info["id"], info.get("track_id")
        yield Segment(mask, info["category_id"], info.get("score"), is_thing, is_crowd, track)


def instance_segments(
    masks: Bools,
    classes: Sequence[int] | Ints,
    scores: Sequence[float] | Floats | None = None,
    tracks: Sequence[int] | None = None,
) -> Iterator[Segment]:
    """Yield segments from masks (N, H, W), N class ids, and N scores and track ids or None."""
    for k, mask in enumerate(masks):
        score, track = None if scores is None else float(scores[k]), None if tracks is None else tracks[k]
        yield Segment(mask, int(classes[k]), score, track=track)


def semantic_segments(labels: Ints, num_classes: int) -> Iterator[Segment]:
    """Yield a segment for each class that occurs in `labels` (H, W); labels outside 0..K-1 are ignored."""
    known = labels[(labels >= 0) & (labels < num_classes)]
    for category_id in np.flatnonzero(np.bincount(known)).tolist():
        yield Segment(labels == category_id, category_id, is_thing=False)


def result_segments(result: dict[str, Any], task: str, min_score: float = 0.0) -> list[Segment]:
    """Return the segments of an image's result, as a model returns it, for one task; none of them is empty.

    Instances of a score below `min_score` are left out.
    """
    if task == "panoptic":
        segment_map, infos = result["panoptic_seg"]
        return list(panoptic_segments(segment_map.cpu().numpy(), infos))
    if task == "instance":
        instances = result["instances"].to("cpu")
        instances = instances[instances.scores >= min_score]
        masks = instances.pred_masks.numpy()
        tracks = instances.track_ids.tolist() if instances.has("track_ids") else None
        segments = instance_segments(masks, instances.pred_classes.tolist(), instances.scores.tolist(), tracks)
        return [segment for segment in segments if segment.mask.any()]
    scores = result["sem_seg"]
    return list(semantic_segments(scores.argmax(0).cpu().numpy().astype(np.int64), len(scores)))
