"""One run on one data set: metrics, statistics, and how good each image is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.evaluation import DatasetEvaluators
from numpy.typing import NDArray
from tqdm import tqdm

from dformer.apps.report.predictions import LabelPair, SegmentPair, open_predictions
from dformer.apps.report.run import Run
from dformer.d2.data.datasets import get_records
from dformer.d2.evaluation.build import task_evaluators
from dformer.d2.evaluation.instance import InstanceEvaluator
from dformer.d2.evaluation.semantic import SemanticEvaluator
from dformer.data.images import read_image
from dformer.metrics.calibration import Calibration, detection_calibration, segment_calibration
from dformer.metrics.segments import MatchedSegment, image_quality, quality_by_size, segment_confusion
from dformer.metrics.semantic import confusion_matrix, semantic_metrics
from dformer.visualize import DEFAULT_STYLE, Style, UInt8, draw_comparison, draw_semantic_comparison, match_segments


@dataclass(frozen=True)
class Analysis:
    """Hold what a report shows of a run's predictions for a data set."""

    run: str  # its name
    task: str  # "panoptic", "instance" or "semantic"
    class_names: list[str]  # by contiguous class id
    metrics: dict[str, dict[str, float]]  # task -> metric -> value, as the evaluators return them
    confusion: NDArray[np.int64]  # (true, predicted) segments, with "nothing" last; or pixels
    qualities: dict[str, float]  # image file -> 0..100, nan where nothing is annotated
    by_size: dict[str, dict[str, float]]  # size -> metrics; empty for semantic predictions
    calibrations: dict[str, Calibration]  # of the scores of "segments" and "instances", where there are any
    draw: Callable[[str], UInt8]  # returns a picture of an image file's ground truth, prediction and errors


def analyze(run: Run, dataset_name: str, style: Style = DEFAULT_STYLE) -> Analysis:
    """Evaluate the predictions for a data set and compare each segment; return what the report shows."""
    folder = run.predictions[dataset_name]
    evaluators = task_evaluators(run.cfg, dataset_name, folder)
    records = {record["file_name"]: record for record in get_records(dataset_name)}
    for each in evaluators.values():
        each.process_saved(list(records.values()))
    metrics = DatasetEvaluators(list(evaluators.values())).evaluate()
    task, evaluator = next(iter(evaluators.items()))
    categories, read = open_predictions(evaluator, list(records.values()))
    names = [category["name"] for category in categories.values()]
    qualities: dict[str, float] = {}
    segments: list[MatchedSegment] = []
    for file, record in tqdm(records.items(), str(folder)):
        pair = read(record)
        if isinstance(pair, LabelPair):
            pixels = confusion_matrix(pair.truth, pair.prediction, len(names), pair.ignore_label)
            qualities[file] = semantic_metrics(pixels, names)["mIoU"]
        else:
            matched = list(_match(pair))
            qualities[file] = image_quality(matched)
            segments += matched

    def draw(file: str) -> UInt8:
        image, pair = read_image(file), read(records[file])
        if isinstance(pair, LabelPair):
            return draw_semantic_comparison(image, pair.truth, pair.prediction, names, style)
        return draw_comparison(image, pair.truth, pair.prediction, names, pair.void, style)

    calibrations = {"segments": segment_calibration(segments)}
    instance = evaluators.get("instance")
    if isinstance(instance, InstanceEvaluator) and instance.evaluation:
        calibrations["instances"] = detection_calibration(instance.evaluation)
    is_semantic = isinstance(evaluator, SemanticEvaluator)
    return Analysis(
        run=run.name,
        task=task,
        class_names=names,
        metrics=metrics,
        confusion=evaluator.confusion if is_semantic else segment_confusion(segments, len(names)),
        qualities=qualities,
        by_size={} if is_semantic else quality_by_size(segments, categories),
        calibrations={scored: c for scored, c in calibrations.items() if c.number.any()},
        draw=draw,
    )


def rank_images(qualities: dict[str, float]) -> list[str]:
    """Sort image files from the worst to the best; return them without those where nothing is annotated."""
    return sorted((file for file, value in qualities.items() if not math.isnan(value)), key=lambda f: qualities[f])


def _match(pair: SegmentPair) -> Iterator[MatchedSegment]:
    for truth, predicted, iou in match_segments(*pair):
        segment = truth or predicted
        assert segment
        score, area = predicted.score if predicted else None, int(segment.mask.sum())
        yield MatchedSegment(truth and truth.category_id, predicted and predicted.category_id, iou, score, area)
