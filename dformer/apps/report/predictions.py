"""Saved predictions with their ground truth, image by image, as the evaluators of the data set read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from panopticapi.utils import rgb2id
from pycocotools import mask as rle

from dformer.d2.evaluation.evaluator import TaskEvaluator
from dformer.d2.evaluation.instance import InstanceEvaluator
from dformer.d2.evaluation.panoptic import PanopticEvaluator
from dformer.d2.evaluation.semantic import SemanticEvaluator
from dformer.data.images import read_panoptic_png
from dformer.metrics.panoptic import Annotation, Categories
from dformer.metrics.semantic import Labels
from dformer.utils.errors import UserError
from dformer.visualize import Bools, Ints, Segment, panoptic_segments

MIN_SCORE = 0.5  # of instances that are compared one by one; those of lower scores are many, and mostly wrong

Record = dict[str, Any]


class SegmentPair(NamedTuple):
    """Hold the true and the predicted segments of an image, and where nothing is annotated (H, W)."""

    truth: list[Segment]
    prediction: list[Segment]
    void: Bools | None


class LabelPair(NamedTuple):
    """Hold the annotated and the predicted class ids (H, W) of an image, and the annotated id that is ignored."""

    truth: Labels
    prediction: Labels
    ignore_label: int


Reader = Callable[[Record], SegmentPair | LabelPair]


def open_predictions(evaluator: TaskEvaluator, records: list[Record]) -> tuple[Categories, Reader]:
    """Return the categories, and a reader of an image's truth and prediction, of what `evaluator` has evaluated."""
    if isinstance(evaluator, PanopticEvaluator):
        return _open_panoptic(evaluator, records)
    if isinstance(evaluator, InstanceEvaluator):
        return _open_instances(evaluator)
    assert isinstance(evaluator, SemanticEvaluator)
    return _open_semantic(evaluator, records)


def _open_panoptic(evaluator: PanopticEvaluator, records: list[Record]) -> tuple[Categories, Reader]:
    ground_truth, read_prediction = evaluator.ground_truth, evaluator.open_saved(records)
    categories = {k: ground_truth.categories[i] for k, i in sorted(evaluator.dataset_ids.items())}
    contiguous = {c["id"]: {"category_id": k, "isthing": c["isthing"]} for k, c in categories.items()}

    def read_segments(annotation: Annotation, png_root: Path) -> tuple[Ints, list[Segment]]:
        ids = rgb2id(read_panoptic_png(png_root / annotation["file_name"]))
        infos = [{**info, **contiguous[info["category_id"]]} for info in annotation["segments_info"]]
        return ids, list(panoptic_segments(ids, infos))

    def read(record: Record) -> SegmentPair:
        annotation = ground_truth[record["image_id"]]
        ids, truth = read_segments(annotation, ground_truth.png_root)
        _, prediction = read_segments(read_prediction(record), evaluator.png_root)
        return SegmentPair(truth, prediction, ~np.isin(ids, [info["id"] for info in annotation["segments_info"]]))

    return categories, read


def _open_instances(evaluator: InstanceEvaluator) -> tuple[Categories, Reader]:
    if evaluator.evaluation is None:
        raise UserError(f"{evaluator.source} has no annotations to compare predictions with")
    contiguous = {i: k for k, i in evaluator.dataset_ids.items()}
    truth, predictions = evaluator.evaluation.cocoGt, evaluator.evaluation.cocoDt
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
    names, ignore_label = evaluator.metadata.stuff_classes, evaluator.metadata.ignore_label
    categories = {k: {"name": name, "isthing": False} for k, name in enumerate(names)}
    return categories, lambda record: LabelPair(evaluator.read_truth(record), read_prediction(record), ignore_label)
