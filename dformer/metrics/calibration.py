"""Calibration of scores: how often a prediction with a score of 0.8 is correct (Guo et al. 2017)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from dformer.metrics.segments import MatchedSegment

BINS = 10  # of scores


@dataclass(frozen=True)
class Calibration:
    """Hold the reliability of scores, in `BINS` equal ranges of the score."""

    number: NDArray[np.int64]  # of predictions
    confidence: NDArray[np.float64]  # their mean score; nan where there are none
    accuracy: NDArray[np.float64]  # the share of them that is correct; nan where there are none

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean difference of confidence and accuracy, 0..1."""
        filled = self.number > 0
        differences = np.abs(self.confidence - self.accuracy)[filled]
        return float(np.average(differences, weights=self.number[filled])) if filled.any() else math.nan


def calibration(scores: Sequence[float], correct: Sequence[bool]) -> Calibration:
    """Compute the calibration of predictions from their scores, 0..1, and whether they are correct."""
    values = np.asarray(scores, float)
    bins = (values * BINS).astype(int).clip(0, BINS - 1)
    number = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, weights=values, minlength=BINS) / number
        accuracy = np.bincount(bins, weights=np.asarray(correct, float), minlength=BINS) / number
    return Calibration(number, confidence, accuracy)


def segment_calibration(segments: Iterable[MatchedSegment]) -> Calibration:
    """Compute the calibration of predicted segments with a score; correct means the right class and IoU > 0.5."""
    scored = [(s.score, s.is_correct) for s in segments if s.predicted is not None and s.score is not None]
    return calibration([score for score, _ in scored], [correct for _, correct in scored])


def detection_calibration(evaluation: COCOeval) -> Calibration:
    """Compute the calibration of instances as pycocotools matches them at IoU 0.5, without those that crowds excuse."""
    scores: list[float] = []
    correct: list[bool] = []
    for image in evaluation.evalImgs:
        if image and image["aRng"] == evaluation.params.areaRng[0]:
            counted = ~image["dtIgnore"][0].astype(bool)
            scores += np.asarray(image["dtScores"])[counted].tolist()
            correct += (image["dtMatches"][0] > 0)[counted].tolist()
    return calibration(scores, correct)
