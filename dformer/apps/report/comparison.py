"""Saved predictions beside the ground truth, image by image, from what the evaluators of a data set read."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog
from panopticapi.utils import rgb2id
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from dformer.apps.report.run import Run
from dformer.d2.data.datasets import loading
from dformer.d2.evaluation.build import build_evaluators
from dformer.d2.evaluation.instance import InstanceEvaluator, coco_evaluation
from dformer.d2.evaluation.output import TaskEvaluator
from dformer.d2.evaluation.panoptic import PanopticEvaluator
from dformer.d2.evaluation.semantic import Labels, SemanticEvaluator
from dformer.data.images import read_image, read_panoptic_png
from dformer.data.panoptic import paint_classes
from dformer.visualize import (
    Bools,
    Match,
    Segment,
    UInt8,
    draw_comparison,
    draw_semantic_comparison,
    match_segments,
    panoptic_segments,
)

LEAST_SCORE = 0.5  # of instances that are compared one by one; those of lower scores are many, and mostly wrong

Record = dict[str, Any]


class Pair(NamedTuple):
    """The true and the predicted segments of an image, classes contiguous, and where nothing is annotated (H, W)."""

    truth: list[Segment]
    prediction: list[Segment]
    void: Bools | None


class Judged:
    """The predictions of a run for a data set.

    Attributes:
        records: its images.
        kind: "panoptic", "instance" or "semantic": what the images are compared for, the first that is there.
        class_names: by contiguous class id.
        is_thing: by contiguous class id.
    """

    def __init__(self, run: Run, dataset_name: str) -> None:
        """
        Raises:
            UserError: of `build_evaluators`, or data set or predictions cannot be read.
        """
        with loading(dataset_name):
            self.records: list[Record] = DatasetCatalog.get(dataset_name)
        evaluators = build_evaluators(run.cfg, dataset_name, run.predictions[dataset_name])._evaluators
        by_type: dict[type, TaskEvaluator] = {type(evaluator): evaluator for evaluator in evaluators}
        self.panoptic: PanopticEvaluator | None = by_type.get(PanopticEvaluator)
        self.instance: InstanceEvaluator | None = by_type.get(InstanceEvaluator)
        self.semantic: SemanticEvaluator | None = by_type.get(SemanticEvaluator)
        if self.panoptic:
            self.kind = "panoptic"
            categories = [
                self.panoptic.ground_truth.categories[i] for _, i in sorted(self.panoptic.dataset_ids.items())
            ]
            self.class_names = [category["name"] for category in categories]
            self.is_thing = [bool(category["isthing"]) for category in categories]
            self._pair = self._panoptic_pairs(self.panoptic)
        elif self.instance:
            self.kind = "instance"
            names = {category["id"]: category["name"] for category in self.instance.truth()["categories"]}
            self.class_names = [names[i] for _, i in sorted(self.instance.dataset_ids.items())]
            self.is_thing = [True] * len(self.class_names)
            self._pair = self._instance_pairs(self.instance)
        elif self.semantic:
            self.kind = "semantic"
            self.class_names = list(self.semantic.class_names)
            self.is_thing = [False] * len(self.class_names)
            self._predicted_labels = self.semantic.read(self.records)

    def matches(self, record: Record) -> list[Match]:
        """What became of the segments of an image; not for semantic predictions."""
        return match_segments(*self._pair(record))

    def labels(self, record: Record) -> tuple[Labels, Labels]:
        """Annotated and predicted class ids (H, W), contiguous; of semantic predictions only."""
        assert self.semantic
        return self.semantic.labels_of(record), self._predicted_labels(record)

    def draw(self, record: Record) -> UInt8:
        """Ground truth, prediction and errors side by side."""
        image = read_image(record["file_name"])
        if self.kind == "semantic":
            return draw_semantic_comparison(image, *self.labels(record), self.class_names)
        truth, prediction, void = self._pair(record)
        return draw_comparison(image, truth, prediction, self.class_names, void)

    @cached_property
    def detections(self) -> COCOeval | None:
        """pycocotools' matching of instances, if there are any; not those of `LEAST_SCORE` alone, but all."""
        if self.instance is None:
            return None
        read = self.instance.read(self.records)
        predictions = [detection for record in self.records for detection in read(record)]
        return coco_evaluation(self.instance.truth(), predictions, [record["image_id"] for record in self.records])

    def _panoptic_pairs(self, evaluator: PanopticEvaluator) -> Callable[[Record], Pair]:
        contiguous = {i: k for k, i in evaluator.dataset_ids.items()}
        prediction_of = evaluator.read(self.records)

        def segments(picture: UInt8, infos: Sequence[dict[str, Any]]) -> list[Segment]:
            classes = [contiguous[info["category_id"]] for info in infos]
            numbered = [
                {**info, "category_id": k, "isthing": self.is_thing[k]} for info, k in zip(infos, classes, strict=True)
            ]
            return list(panoptic_segments(rgb2id(picture), numbered))

        def pair(record: Record) -> Pair:
            truth, prediction = evaluator.ground_truth[record["image_id"]], prediction_of(record)
            annotated = read_panoptic_png(evaluator.ground_truth.png_file(truth))
            predicted = read_panoptic_png(evaluator.png_root / prediction["file_name"])
            known = paint_classes(annotated, {info["id"]: 0 for info in truth["segments_info"]}, ignore_label=1)
            return Pair(
                segments(annotated, truth["segments_info"]),
                segments(predicted, prediction["segments_info"]),
                known == 1,
            )

        return pair

    def _instance_pairs(self, evaluator: InstanceEvaluator) -> Callable[[Record], Pair]:
        contiguous = {i: k for k, i in evaluator.dataset_ids.items()}
        prediction_of = evaluator.read(self.records)
        assert self.detections
        truth = self.detections.cocoGt

        def pair(record: Record) -> Pair:
            objects = [
                Segment(
                    truth.annToMask(annotation).astype(bool),
                    contiguous[annotation["category_id"]],
                    is_crowd=bool(annotation["iscrowd"]),
                )
                for annotation in truth.imgToAnns[record["image_id"]]
            ]
            predicted = [
                Segment(rle.decode(detection["segmentation"]).astype(bool), category, detection["score"])
                for detection in prediction_of(record)
                if detection["score"] >= LEAST_SCORE
                for category in [contiguous[detection["category_id"]]]
            ]
            return Pair(objects, predicted, None)

        return pair
