"""Segmentation and tracking quality of videos (Weber et al. 2021, "STEP").

STQ = sqrt(AQ * IoU): association quality of ids over whole videos, which ignores classes, and mean IoU of classes over
all pixels, which ignores ids.

A video is an array (T, h, w, 2) of classes and ids; it is a sequence of frames, so frames may be of any one size.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]


class Quality(NamedTuple):
    """Hold STQ and its two factors, in [0, 1]."""

    stq: float
    aq: float
    iou: float

    @classmethod
    def of(cls, aq: float, iou: float) -> "Quality":
        """Return the quality with these factors."""
        return cls(float(np.sqrt(aq * iou)), aq, iou)


def segmentation_and_tracking_quality(
    videos: Iterable[tuple[Labels, Labels]], num_classes: int, things: Sequence[int], ignore: int
) -> tuple[Quality, list[Quality]]:
    """Return the quality over all videos, and that of each.

    Args:
        videos: pairs (ground truth, prediction). Ground truth of a thing class with id 0 is a crowd: its pixels do not
            count for AQ. Classes are 0..num_classes - 1.
        things: classes with ids.
        ignore: class of the ground truth's pixels without annotation, which count for nothing.
    """
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    associations, tracks, each = 0.0, 0, []
    for truth, found in videos:
        own = _confusion(truth[..., 0], found[..., 0], num_classes, ignore)
        association, count = _association(truth, found, things)
        each.append(Quality.of(association / max(count, 1), _mean_iou(own)))
        confusion += own
        associations += association
        tracks += count
    return Quality.of(associations / max(tracks, 1), _mean_iou(confusion)), each


def _confusion(truth: Labels, found: Labels, num_classes: int, ignore: int) -> NDArray[np.int64]:
    """Pixels by class of the truth and predicted class, any class out of range in the last column."""
    known = truth != ignore
    predicted = np.where((found >= 0) & (found < num_classes), found, num_classes)[known]
    pairs = truth[known].astype(np.int64) * (num_classes + 1) + predicted
    return np.bincount(pairs, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def _mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in truth or prediction."""
    square = confusion[:, :-1]
    intersection = np.diag(square)
    union = confusion.sum(1) + square.sum(0) - intersection
    return float((intersection / np.maximum(union, 1)).sum() / max(np.count_nonzero(union), 1))


def _association(truth: Labels, found: Labels, things: Sequence[int]) -> tuple[float, int]:
    """Sum over the true tracks g of sum_p TPA(g, p) IoU(g, p) / |g|, and their number (STEP, Eq. 4)."""
    is_thing = np.isin(truth[..., 0], things)
    crowd = is_thing & (truth[..., 1] == 0)
    own, predicted = is_thing & ~crowd, np.isin(found[..., 0], things) & ~crowd
    true_ids, true_areas = np.unique(truth[own][:, 1], return_counts=True)
    found_ids, found_areas = np.unique(found[predicted][:, 1], return_counts=True)
    both = own & predicted
    pairs = np.stack([truth[both][:, 1], found[both][:, 1]])
    (g, p), shared = np.unique(pairs, axis=1, return_counts=True)
    g, p = np.searchsorted(true_ids, g), np.searchsorted(found_ids, p)
    iou = shared / (true_areas[g] + found_areas[p] - shared)
    return float((shared * iou / true_areas[g]).sum()), len(true_ids)


def renew_returning_ids(ids: Labels, past: int) -> Labels:
    """Return ids (T, h, w) of which each that was absent from all of the `past` frames before gets a new number.

    A model that sees so many past frames cannot know an object that returns later; 0, no object, stays.
    """
    renewed, next_id = np.zeros_like(ids), int(ids.max(initial=0)) + 1
    current: dict[int, int] = {}
    last_seen: dict[int, int] = {}
    for frame, values in enumerate(ids):
        for value in np.unique(values[values > 0]).tolist():
            if value not in current:
                current[value] = value
            elif frame - last_seen[value] > past:
                current[value], next_id = next_id, next_id + 1
            last_seen[value] = frame
            renewed[frame][values == value] = current[value]
    return renewed
