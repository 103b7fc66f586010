"""Several answers for one image, merged into one that says how sure it is (deep ensembles, and their disagreement).

Shapes: k samples of a panoptic map of H x W, each with its segments in Detectron2's form.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

MIN_IOU = 0.5  # from which on segments of two samples are the same
Segments = list[dict[str, Any]]
Sample = tuple[NDArray[np.integer[Any]], Segments]  # map (H, W) of ids, and the segments


class Cluster(NamedTuple):
    """Hold what samples have found in one place: `votes` (H, W), how many have it at each pixel, and their segments."""

    votes: NDArray[np.int64]
    segments: Segments
    masks: list[NDArray[np.bool_]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Return the pixels (H, W) that most of its members have."""
        return 2 * self.votes > len(self.segments)


def merge_samples(samples: Sequence[Sample]) -> tuple[NDArray[np.int32], Segments, NDArray[np.float32]]:
    """Return the panoptic map (H, W) that most samples agree on, its segments, and the agreement (H, W) in [0, 1].

    Segments of different samples are matched by IoU, one to one. A pixel is in the segment that most samples have
    there, and its agreement is the share of those samples. A segment's score is the mean, over all samples, of its IoU
    with the sample's own segment times that one's class score: 0 where a sample has none, or one of another class.
    """
    clusters = cluster_segments(samples)
    shape = samples[0][0].shape
    votes = np.stack([cluster.votes for cluster in clusters] or [np.zeros(shape, np.int64)])
    winner, most = votes.argmax(0), votes.max(0)
    unlabelled = np.sum([ids == 0 for ids, _ in samples], axis=0)
    merged, segments = np.zeros(shape, np.int32), list[dict[str, Any]]()
    for index, cluster in enumerate(clusters):
        mask = (winner == index) & (most > unlabelled)
        if not mask.any():
            continue
        category, _ = Counter(segment["category_id"] for segment in cluster.segments).most_common(1)[0]
        members = zip(cluster.segments, cluster.masks, strict=True)
        shares = [s.get("score", 1.0) * iou(mask, own) for s, own in members if s["category_id"] == category]
        (first, *_) = (segment for segment in cluster.segments if segment["category_id"] == category)
        number, score = len(segments) + 1, sum(shares) / len(samples)
        segments.append({**first, "id": number, "score": score, "area": int(mask.sum())})
        merged[mask] = number
    agreement = np.where(merged > 0, most, unlabelled) / len(samples)
    return merged, segments, agreement.astype(np.float32)


def cluster_segments(samples: Sequence[Sample]) -> list[Cluster]:
    """Return the segments of all samples, those that show the same together, in the order in which they were found."""
    clusters: list[Cluster] = []
    for ids, segments in samples:
        masks = [ids == segment["id"] for segment in segments]
        overlap = np.zeros((len(clusters), len(masks)))
        for row, cluster in zip(overlap, clusters, strict=True):
            row[:] = overlaps(cluster.mask, ids, [segment["id"] for segment in segments])
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        place = {c: r for r, c in zip(rows.tolist(), columns.tolist(), strict=True) if overlap[r, c] > MIN_IOU}
        for column, (mask, segment) in enumerate(zip(masks, segments, strict=True)):
            if column in place:
                votes, found, shown = clusters[place[column]]
                clusters[place[column]] = Cluster(votes + mask, [*found, segment], [*shown, mask])
            else:
                clusters.append(Cluster(mask.astype(np.int64), [segment], [mask]))
    return clusters


def overlaps(mask: NDArray[np.bool_], ids: NDArray[np.integer[Any]], numbers: list[int]) -> NDArray[np.float64]:
    """Return the IoU of a mask (H, W) with each segment of a map (H, W) that has one of these ids."""
    count = max(numbers, default=0) + 1
    shared, areas = (np.bincount(x, minlength=count)[numbers] for x in (ids[mask], ids.ravel()))
    return shared / np.maximum(mask.sum() + areas - shared, 1)


def iou(first: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Compute the IoU of two masks (H, W); 0 where both are empty."""
    union = (first | other).sum()
    return float((first & other).sum() / union) if union else 0.0
