"""Average precision of instance masks, computed by pycocotools as COCO's official evaluation does."""

import io
import logging
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dformer.d2.evaluation.output import PREDICT, TaskEvaluator
from dformer.metrics.boundary import BoundaryEvaluation
from dformer.utils.errors import UserError
from dformer.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

Detections = list[dict[str, Any]]  # in COCO's results format: "image_id", "category_id", "segmentation" (RLE), "score"

# COCO's twelve numbers, in the order of pycocotools' summary.
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class InstanceEvaluator(TaskEvaluator[Detections]):
    """Mask AP of `instances`: COCO's twelve numbers, which are AP (IoU 0.5..0.95), AP50, AP75, APs, APm, APl (by area),
    the average recall with 1, 10 and 100 masks an image (AR1, AR10, AR100) and by area; and AP of each class.

    At most 100 masks an image and class count. A class without annotations has AP nan and does not count; crowd regions
    are ignored as the official evaluation ignores them. With `with_boundary` all of it again with boundary IoU, as
    `Boundary...`.

    In the folder: `coco_instances_results.json`, in COCO's results format.
    """

    def __init__(
        self,
        truth: Callable[[], dict[str, Any]],
        where: str,
        dataset_ids: Mapping[int, int],
        folder: Path,
        with_boundary: bool = False,
    ) -> None:
        """
        Args:
            truth: gives the annotations as a COCO instances json has them, in dataset category ids.
            where: they are, for messages.
            dataset_ids: contiguous class id -> dataset category id, of things.
            folder: of the predictions.
        """
        self.truth = truth
        self._where = where
        self.dataset_ids = dataset_ids
        self._with_boundary = with_boundary
        super().__init__(folder)

    def reset(self) -> None:
        super().reset()
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

    def read(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Detections]:
        file = self.folder / "coco_instances_results.json"
        truth = self.truth()
        sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
        by_image: dict[int | str, Detections] = defaultdict(list)
        for i, detection in enumerate(read_json(file, PREDICT)):
            try:
                check_detection(detection, sizes, set(self.dataset_ids.values()))
            except UserError as error:
                raise UserError(f"{file}, entry {i}: {error}") from error
            by_image[detection["image_id"]].append(detection)
        return lambda image: by_image[image["image_id"]]

    def add(self, image: dict[str, Any], prediction: Detections) -> None:
        self._image_ids.append(image["image_id"])
        self._predictions += prediction

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered_ids = comm.gather(self._image_ids)
        gathered_predictions = comm.gather(self._predictions)
        if not comm.is_main_process():
            return {}
        image_ids = list(chain.from_iterable(gathered_ids))
        predictions = list(chain.from_iterable(gathered_predictions))
        if not self.is_saved:
            write_json(self.folder / "coco_instances_results.json", predictions)
        truth = self.truth()
        missing = set(image_ids) - {image["id"] for image in truth["images"]}
        if missing:
            raise UserError(
                f"{self._where} has no image with id {min(missing, key=str)!r}; it belongs to another data set"
            )
        if "annotations" not in truth:
            logger.warning("%s has no annotations, so AP is left out; the predictions are saved", self._where)
            return {}
        results = mask_average_precision(truth, predictions, image_ids)
        if self._with_boundary:
            of_boundaries = mask_average_precision(truth, predictions, image_ids, BoundaryEvaluation)
            results |= {f"Boundary{name}": value for name, value in of_boundaries.items()}
        return OrderedDict(segm=results)


def check_detection(detection: Any, sizes: Mapping[int | str, list[int]], category_ids: set[int]) -> None:
    """Check an entry of COCO's results format.

    Args:
        sizes: image id -> [height, width].
        category_ids: of the data set's things.

    Raises:
        UserError: a key is missing, or image, category, mask or size do not fit the data set.
    """
    try:
        image_id, category_id = detection["image_id"], detection["category_id"]
        size, counts, score = detection["segmentation"]["size"], detection["segmentation"]["counts"], detection["score"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{error!r}; COCO's results format has image_id, category_id, segmentation (RLE with size, counts), score"
        ) from error
    if image_id not in sizes:
        raise UserError(f"the data set has no image with id {image_id!r}; these predictions are for another one")
    if category_id not in category_ids:
        raise UserError(f"the data set has no thing category with id {category_id!r}; predictions have its own ids")
    if list(size) != sizes[image_id]:
        raise UserError(f"its mask has size {size}, image {image_id!r} has {sizes[image_id]} (height, width)")
    if not isinstance(counts, str) or not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError("segmentation must be a compressed RLE, with counts as a string, and score a number")


def mask_average_precision(
    truth: dict[str, Any],
    predictions: Detections,
    image_ids: list[int | str],
    evaluation_type: type[COCOeval] = COCOeval,
) -> dict[str, float]:
    """`SUMMARY` over `image_ids`, then AP of each class, 0..100, nan where nothing is annotated.

    Args:
        truth: content of a COCO instances json.
        predictions: in COCO's results format, masks as RLE.
        image_ids: images that were predicted; those without a prediction are missed objects, others do not count.
        evaluation_type: says what IoU is.
    """
    evaluation = coco_evaluation(truth, predictions, image_ids, evaluation_type)
    with redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()

    # -1: nothing annotated
    stats = evaluation.stats.tolist()
    results = {name: math.nan if s == -1 else 100 * s for name, s in zip(SUMMARY, stats, strict=True)}
    precision = evaluation.eval["precision"][..., 0, -1]  # IoU threshold, recall, class; of any area
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for k, category_id in enumerate(evaluation.params.catIds):
        results[f"AP-{names[category_id]}"] = _mean(precision[:, :, k])
    return results


def coco_evaluation(
    truth: dict[str, Any],
    predictions: Detections,
    image_ids: list[int | str],
    evaluation_type: type[COCOeval] = COCOeval,
) -> COCOeval:
    """pycocotools' matching of predictions and objects, in `evalImgs`; arguments as of `mask_average_precision`."""
    detections = [
        {
            **prediction,
            "id": i,
            "iscrowd": 0,
            "area": float(rle.area(prediction["segmentation"])),
        }
        for i, prediction in enumerate(predictions, start=1)
    ]
    # COCOeval takes an object with id 0 for one that was not found, so ids start at 1 whatever the file has.
    objects = [{"iscrowd": 0, **annotation, "id": i} for i, annotation in enumerate(truth["annotations"], start=1)]
    with redirect_stdout(io.StringIO()):
        evaluation = evaluation_type(_coco(truth, objects), _coco(truth, detections), "segm")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
    return evaluation


def _coco(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    return coco


def _mean(precision: NDArray[np.float64]) -> float:
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else math.nan
