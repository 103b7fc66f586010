"""Numbers that say where predictions fail. K classes; segments are compared as in `match_segments`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from panopticapi.evaluation import PQStat
from pycocotools.cocoeval import COCOeval

from dformer.d2.evaluation.panoptic import panoptic_quality
from dformer.visualize import Match

# Areas in pixels, from and up to: COCO's.
SIZES = {
    "small (< 32 x 32)": (0, 32**2),
    "medium": (32**2, 96**2),
    "large (> 96 x 96)": (96**2, math.inf),
    "all": (0, math.inf),
}
BINS = 10  # of scores


@dataclass(frozen=True)
class Outcome:
    """What is kept of a match.

    Attributes:
        truth, predicted: classes; None where nothing is there: the segment is false, or missed.
        iou: of the two.
        score: of the predicted segment, where it has one.
        area: in pixels, of the true segment or, where it is false, of the predicted one.
    """

    truth: int | None
    predicted: int | None
    iou: float
    score: float | None
    area: int

    @classmethod
    def of(cls, match: Match) -> "Outcome":
        """That of a match."""
        true, predicted, iou = match
        segment = true or predicted
        assert segment
        return cls(
            true.category if true else None,
            predicted.category if predicted else None,
            iou,
            predicted.score if predicted else None,
            int(segment.mask.sum()),
        )

    @property
    def is_right(self) -> bool:
        """Whether a segment and its class were found."""
        return self.truth == self.predicted


def quality(outcomes: Iterable[Outcome]) -> float:
    """Panoptic quality of segments whatever their class, 0..100; nan where there are none.

    This is that of an image: of means over classes, single segments would decide.
    """
    total = hits = 0.0
    for outcome in outcomes:
        total += ((outcome.truth is not None) + (outcome.predicted is not None)) / 2
        hits += outcome.iou * outcome.is_right
    return 100 * hits / total if total else math.nan


def quality_by_size(
    outcomes: Sequence[Outcome], categories: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Metrics of `panoptic_quality`, and the number of true "segments", for each of `SIZES`.

    Args:
        categories: contiguous class id -> {"name", "isthing"}.
    """
    result = {}
    for size, (low, high) in SIZES.items():
        chosen = [outcome for outcome in outcomes if low <= outcome.area < high]
        counts = PQStat()
        for outcome in chosen:
            if outcome.is_right:
                counts[outcome.truth].tp += 1
                counts[outcome.truth].iou += outcome.iou
                continue
            if outcome.truth is not None:
                counts[outcome.truth].fn += 1
            if outcome.predicted is not None:
                counts[outcome.predicted].fp += 1
        number = sum(outcome.truth is not None for outcome in chosen)
        result[size] = {**panoptic_quality(counts, categories), "segments": number}
    return result


def segment_confusion(outcomes: Iterable[Outcome], num_classes: int) -> NDArray[np.int64]:
    """Segments by true and predicted class, (K + 1, K + 1): false ones in the last row, missed in the last column."""
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for outcome in outcomes:
        row, column = (num_classes if cls is None else cls for cls in (outcome.truth, outcome.predicted))
        confusion[row, column] += 1
    return confusion


class Calibration(NamedTuple):
    """Of the predictions in each of `BINS` equal ranges of the score: how many there are, their mean score, and which
    share of them is right. Both are nan where there are none."""

    number: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the mean difference of score and share, 0..1."""
        seen = self.number > 0
        differences = np.abs(self.score - self.right)[seen]
        return float(np.average(differences, weights=self.number[seen])) if seen.any() else math.nan


def calibration(scores: Sequence[float], right: Sequence[bool]) -> Calibration:
    """Args are of all predictions: the score, 0..1, and whether it is right."""
    values = np.asarray(scores, float)
    bins = (values * BINS).astype(int).clip(0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=each, minlength=BINS) / count for each in (values, np.asarray(right, float))]
    return Calibration(count, means[0], means[1])


def segment_calibration(outcomes: Iterable[Outcome]) -> Calibration:
    """Of predicted segments that have a score: right where class and IoU > 0.5 are."""
    scored = [(o.score, o.is_right) for o in outcomes if o.predicted is not None and o.score is not None]
    return calibration([score for score, _ in scored], [right for _, right in scored])


def detection_calibration(evaluation: COCOeval) -> Calibration:
    """Of all instances, as pycocotools matches them at IoU 0.5; what crowds excuse does not count."""
    scores: list[float] = []
    right: list[bool] = []
    for result in evaluation.evalImgs:
        if result and result["aRng"] == evaluation.params.areaRng[0]:
            counted = ~result["dtIgnore"][0].astype(bool)
            scores += np.asarray(result["dtScores"])[counted].tolist()
            right += (result["dtMatches"][0] > 0)[counted].tolist()
    return calibration(scores, right)
