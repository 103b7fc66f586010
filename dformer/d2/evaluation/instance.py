"""Mask AP of a model's `instances`."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from detectron2.utils import comm
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from dformer.d2.evaluation.evaluator import REMEDY, TaskEvaluator
from dformer.metrics.boundary import BoundaryEvaluation
from dformer.metrics.instance import Detections, check_detection, coco_evaluation, mask_average_precision
from dformer.utils import groups
from dformer.utils.errors import UserError
from dformer.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

FILE = "coco_instances_results.json"


@dataclass(eq=False)
class InstanceEvaluator(TaskEvaluator[Detections]):
    """Evaluate `instances`: COCO's twelve metrics and the AP of each class, see `mask_average_precision`.

    At most 100 masks an image and class count; crowd regions are ignored as the official evaluation ignores them. The
    folder gets `coco_instances_results.json`, in COCO's results format. After `evaluate`, the main process has
    pycocotools' matching of predictions and objects in `evaluation`.
    """

    truth: Callable[[], dict[str, Any]]  # reads the annotations as a COCO instances json has them
    source: str  # of the annotations, for messages
    dataset_ids: Mapping[int, int]  # contiguous class id -> dataset category id, of things
    with_boundary: bool = False  # adds all metrics with boundary IoU, as `Boundary...`

    def reset(self) -> None:
        super().reset()
        self.evaluation: COCOeval | None = None
        self._image_ids: list[int | str] = []
        self._predictions: Detections = []

    def write(self, image: dict[str, Any], output: dict[str, Any]) -> Detections:
        instances = output["instances"].to("cpu")
        # pycocotools wants (H, W, n), columns contiguous
        masks = np.asfortranarray(instances.pred_masks.numpy().transpose(1, 2, 0).astype(np.uint8))
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        return [
            {
                "image_id": image["image_id"],
                "category_id": self.dataset_ids[class_id],
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                "score": score,
            }
            for mask, class_id, score in zip(rle.encode(masks), classes, scores, strict=True)
        ]

    def open_saved(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Detections]:
        sizes = {image["id"]: [image["height"], image["width"]] for image in self.truth()["images"]}
        category_ids = set(self.dataset_ids.values())
        by_image: dict[int | str, Detections] = defaultdict(list)
        for i, detection in enumerate(read_json(self.folder / FILE, REMEDY)):
            try:
                check_detection(detection, sizes, category_ids)
            except UserError as error:
                raise UserError(f"{self.folder / FILE}, entry {i}: {error}") from error
            by_image[detection["image_id"]].append(detection)
        return lambda image: by_image[image["image_id"]]

    def add(self, image: dict[str, Any], prediction: Detections) -> None:
        self._image_ids.append(image["image_id"])
        self._predictions += prediction

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = groups.gather((self._image_ids, self._predictions))
        if not comm.is_main_process():
            return {}
        image_ids, predictions = (list(chain.from_iterable(parts)) for parts in zip(*gathered, strict=True))
        if not self.is_saved:
            write_json(self.folder / FILE, predictions)
        truth = self.truth()
        unknown = set(image_ids) - {image["id"] for image in truth["images"]}
        if unknown:
            raise UserError(f"{self.source} has no image with id {min(unknown, key=str)!r}; add it to the annotations")
        if "annotations" not in truth:
            logger.warning("%s has no annotations, so AP is not computed; the predictions are saved", self.source)
            return {}
        return {"segm": self.score(truth, predictions, image_ids)}

    def score(self, truth: dict[str, Any], predictions: Detections, image_ids: list[int | str]) -> dict[str, float]:
        """Return the metrics of the predictions of these images."""
        self.evaluation = coco_evaluation(truth, predictions, image_ids)
        results = mask_average_precision(self.evaluation)
        if self.with_boundary:
            evaluation = coco_evaluation(truth, predictions, image_ids, BoundaryEvaluation)
            results |= {f"Boundary{name}": value for name, value in mask_average_precision(evaluation).items()}
        return results
