"""Saved predictions with their ground truth, image by image, as the evaluators of the data set read them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog
from panopticapi.utils import rgb2id
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from dformer.apps.report.run import Run
from dformer.d2.data.datasets import loading
from dformer.d2.evaluation.build import task_evaluators
from dformer.d2.evaluation.instance import InstanceEvaluator
from dformer.d2.evaluation.panoptic import PanopticEvaluator
from dformer.d2.evaluation.semantic import SemanticEvaluator
from dformer.data.images import read_panoptic_png
from dformer.metrics.instance import coco_evaluation
from dformer.metrics.panoptic import Annotation, Categories
from dformer.metrics.semantic import Labels
from dformer.visualize import Bools, Ints, Segment, panoptic_segments

MIN_SCORE = 0.5  # of instances that are compared one by one; those of lower scores are many, and mostly wrong

Record = dict[str, Any]


class SegmentPair(NamedTuple):
    """Hold the true and the predicted segments of an image, and where nothing is annotated (H, W)."""

    truth: list[Segment]
    prediction: list[Segment]
    void: Bools | None


class LabelPair(NamedTuple):
    """Hold the annotated and the predicted class ids (H, W) of an image, and the id that is ignored."""

    truth: Labels
    prediction: Labels
    ignore_label: int


Reader = Callable[[Record], SegmentPair | LabelPair]


@dataclass(frozen=True)
class Predictions:
    """Hold the predictions of a run for a data set, to be compared with the ground truth. Class ids are contiguous.

    Attributes:
        records: the data set's images.
        task: "panoptic", "instance" or "semantic", the first that was predicted; images are compared for it.
        categories: class id -> {"name", "isthing"}.
        read: returns ground truth and prediction of an image.
        detections: pycocotools' matching of all instances, where instances were predicted.
    """

    records: list[Record]
    task: str
    categories: Categories
    read: Reader
    detections: COCOeval | None


def open_predictions(run: Run, dataset_name: str) -> Predictions:
    """Open the predictions of a run for a data set; return them with the ground truth.

    Raises:
        UserError: as `build_evaluators`, or the data set or the predictions cannot be read.
    """
    with loading(dataset_name):
        records: list[Record] = DatasetCatalog.get(dataset_name)
    evaluators = task_evaluators(run.cfg, dataset_name, run.predictions[dataset_name])
    task, evaluator = next(iter(evaluators.items()))
    instances, detections = evaluators.get("instance"), None
    if isinstance(instances, InstanceEvaluator):
        read_detections = instances.open_saved(records)
        found = [detection for record in records for detection in read_detections(record)]
        detections = coco_evaluation(instances.truth(), found, [record["image_id"] for record in records])
    if isinstance(evaluator, PanopticEvaluator):
        categories, read = _open_panoptic(evaluator, records)
    elif isinstance(evaluator, InstanceEvaluator):
        categories, read = _open_instances(evaluator, detections)
    else:
        assert isinstance(evaluator, SemanticEvaluator)
        categories, read = _open_semantic(evaluator, records)
    return Predictions(records, task, categories, read, detections)


def _open_panoptic(evaluator: PanopticEvaluator, records: list[Record]) -> tuple[Categories, Reader]:
    contiguous = {i: k for k, i in evaluator.dataset_ids.items()}
    categories = {k: evaluator.ground_truth.categories[i] for k, i in sorted(evaluator.dataset_ids.items())}
    read_prediction = evaluator.open_saved(records)

    def segments(ids: Ints, annotation: Annotation) -> list[Segment]:
        infos = []
        for info in annotation["segments_info"]:
            k = contiguous[info["category_id"]]
            infos.append({**info, "category_id": k, "isthing": categories[k]["isthing"]})
        return list(panoptic_segments(ids, infos))

    def read(record: Record) -> SegmentPair:
        truth, prediction = evaluator.ground_truth[record["image_id"]], read_prediction(record)
        true_ids = rgb2id(read_panoptic_png(evaluator.ground_truth.png_root / truth["file_name"]))
        predicted_ids = rgb2id(read_panoptic_png(evaluator.png_root / prediction["file_name"]))
        void = ~np.isin(true_ids, [info["id"] for info in truth["segments_info"]])
        return SegmentPair(segments(true_ids, truth), segments(predicted_ids, prediction), void)

    return categories, read


def _open_instances(evaluator: InstanceEvaluator, detections: COCOeval) -> tuple[Categories, Reader]:
    contiguous = {i: k for k, i in evaluator.dataset_ids.items()}
    truth, predictions = detections.cocoGt, detections.cocoDt
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    categories = {k: {"name": names[i], "isthing": True} for k, i in sorted(evaluator.dataset_ids.items())}

    def read(record: Record) -> SegmentPair:
        objects = [
            Segment(truth.annToMask(a).astype(bool), contiguous[a["category_id"]], is_crowd=bool(a["iscrowd"]))
            for a in truth.imgToAnns[record["image_id"]]
        ]
        predicted = [
            Segment(rle.decode(d["segmentation"]).astype(bool), contiguous[d["category_id"]], d["score"])
            for d in predictions.imgToAnns[record["image_id"]]
            if d["score"] >= MIN_SCORE
        ]
        return SegmentPair(objects, predicted, None)

    return categories, read


def _open_semantic(evaluator: SemanticEvaluator, records: list[Record]) -> tuple[Categories, Reader]:
    read_prediction = evaluator.open_saved(records)
    categories = {k: {"name": name, "isthing": False} for k, name in enumerate(evaluator.class_names)}
    return categories, lambda record: LabelPair(
        evaluator.read_truth(record), read_prediction(record), evaluator.ignore_label
    )
