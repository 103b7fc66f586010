"""One run on one data set: metrics, statistics, and how good each image is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dformer.apps.report.comparison import Judged
from dformer.apps.report.run import Run
from dformer.apps.report.statistics import (
    Calibration,
    Outcome,
    detection_calibration,
    quality,
    quality_by_size,
    segment_calibration,
    segment_confusion,
)
from dformer.d2.evaluation import evaluate_saved
from dformer.d2.evaluation.semantic import confusion_matrix, semantic_metrics
from dformer.visualize import UInt8


@dataclass
class Analysis:
    """Attributes:
    metrics: task -> metric -> value, as the evaluators have them.
    kind: "panoptic", "instance" or "semantic".
    classes: names.
    confusion: (true, predicted) segments, with "nothing" last; or pixels.
    by_size: size -> metrics; empty for semantic predictions.
    calibrations: what has scores -> how far they can be trusted.
    qualities: image file -> 0..100, nan where nothing is annotated.
    draw: a picture of an image file's ground truth, prediction and errors.
    """

    metrics: dict[str, dict[str, float]]
    kind: str
    classes: list[str]
    confusion: NDArray[np.int64]
    qualities: dict[str, float]
    draw: Callable[[str], UInt8]
    by_size: dict[str, dict[str, float]] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)


def analyse(run: Run, dataset_name: str) -> Analysis:
    """Read all predictions for a data set twice: as the evaluation does, and to see what became of each segment.

    Raises:
        UserError: as `evaluate_saved`.
    """
    folder = run.predictions[dataset_name]
    metrics = evaluate_saved(run.cfg, dataset_name, folder.parent)
    judged = Judged(run, dataset_name)
    records = {record["file_name"]: record for record in judged.records}
    names, count = judged.class_names, len(judged.class_names)
    result = Analysis(
        metrics=metrics,
        kind=judged.kind,
        classes=names,
        confusion=np.zeros((count, count), np.int64),
        qualities={},
        draw=lambda file: judged.draw(records[file]),
    )
    outcomes: list[Outcome] = []
    for file, record in tqdm(records.items(), str(folder)):
        if judged.kind == "semantic":
            assert judged.semantic
            pixels = confusion_matrix(*judged.labels(record), count, judged.semantic.ignore_label)
            result.confusion += pixels
            result.qualities[file] = semantic_metrics(pixels, names)["mIoU"]
        else:
            of_image = [Outcome.of(match) for match in judged.matches(record)]
            result.qualities[file] = quality(of_image)
            outcomes += of_image
    if judged.kind != "semantic":
        categories: dict[int, dict[str, Any]] = {
            k: {"name": name, "isthing": is_thing}
            for k, (name, is_thing) in enumerate(zip(names, judged.is_thing, strict=True))
        }
        result.confusion = segment_confusion(outcomes, count)
        result.by_size = quality_by_size(outcomes, categories)
    calibrations = {
        "segments": segment_calibration(outcomes),
        "instances": detection_calibration(judged.detections) if judged.detections else None,
    }
    result.calibrations = {what: c for what, c in calibrations.items() if c and c.number.any()}
    return result


def ranked(qualities: dict[str, float]) -> list[str]:
    """Image files from the worst to the best; without those where there is nothing to be good at."""
    return sorted((file for file, value in qualities.items() if not math.isnan(value)), key=lambda f: qualities[f])
