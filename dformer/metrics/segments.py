"""Statistics of segments that were compared one by one: panoptic quality of an image and by size, confusion."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from panopticapi.evaluation import PQStat

from dformer.metrics.panoptic import Categories, panoptic_quality

# Areas in pixels, from and up to: COCO's.
SIZES = {
    "small (< 32 x 32)": (0, 32**2),
    "medium": (32**2, 96**2),
    "large (> 96 x 96)": (96**2, math.inf),
    "all": (0, math.inf),
}


class MatchedSegment(NamedTuple):
    """Hold a true segment and the prediction that matches it (IoU > 0.5), or one without the other, but no masks."""

    truth: int | None  # contiguous class id; None if the segment is false
    predicted: int | None  # contiguous class id; None if the segment is missed
    iou: float  # 0 without a match
    score: float | None  # of the predicted segment, if it has one
    area: int  # in pixels, of the true segment or, if it is false, of the predicted one

    @property
    def is_correct(self) -> bool:
        """Tell whether a segment and its class were found."""
        return self.truth == self.predicted


def image_quality(segments: Sequence[MatchedSegment]) -> float:
    """Return the panoptic quality of an image's segments, pooled over classes: 0..100, nan where there are none.

    Single segments would decide a mean over the classes of one image.
    """
    iou_sum = sum(segment.iou for segment in segments if segment.is_correct)
    number = sum((segment.truth is not None) + (segment.predicted is not None) for segment in segments) / 2
    return 100 * iou_sum / number if number else math.nan


def quality_by_size(segments: Sequence[MatchedSegment], categories: Categories) -> dict[str, dict[str, float]]:
    """Return the metrics of `panoptic_quality`, and the number of true "segments", for each of `SIZES`."""
    results = {}
    for size, (low, high) in SIZES.items():
        counts, number = PQStat(), 0
        for segment in segments:
            if not low <= segment.area < high:
                continue
            number += segment.truth is not None
            if segment.is_correct:
                counts[segment.truth].tp += 1
                counts[segment.truth].iou += segment.iou
            else:  # None collects what has no class; no category reads it
                counts[segment.truth].fn += 1
                counts[segment.predicted].fp += 1
        results[size] = {**panoptic_quality(counts, categories), "segments": number}
    return results


def segment_confusion(segments: Iterable[MatchedSegment], num_classes: int) -> NDArray[np.int64]:
    """Count segments by classes; return (K + 1, K + 1), false ones in the last row, missed in the last column."""
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for segment in segments:
        row, column = (num_classes if cls is None else cls for cls in (segment.truth, segment.predicted))
        confusion[row, column] += 1
    return confusion
