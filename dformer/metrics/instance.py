"""Average precision of instance masks, computed by pycocotools as COCO's official evaluation does."""

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dformer.utils.errors import UserError

Detections = list[dict[str, Any]]  # in COCO's results format: "image_id", "category_id", "segmentation" (RLE), "score"

# COCO's twelve numbers, in the order of pycocotools' summary.
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def check_detection(detection: Any, sizes: Mapping[int | str, Sequence[int]], category_ids: set[int]) -> None:
    """Check an entry of COCO's results format against the data set's sizes (image id -> [height, width]) and things.

    Raises:
        UserError: a key is missing, or image, category, mask or size do not fit the data set.
    """
    try:
        image_id, category_id, score = (detection[key] for key in ("image_id", "category_id", "score"))
        size, counts = (detection["segmentation"][key] for key in ("size", "counts"))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{error!r}; COCO's results format has image_id, category_id, segmentation (RLE with size, counts), score"
        ) from error
    if image_id not in sizes:
        raise UserError(f"image_id: the data set has no image with id {image_id!r}; predict this data set")
    if category_id not in category_ids:
        raise UserError(f"category_id: the data set has no thing category with id {category_id!r}")
    if list(size) != list(sizes[image_id]):
        raise UserError(f"segmentation: size is {size}, of image {image_id!r} {sizes[image_id]} (height, width)")
    if not isinstance(counts, str) or not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError("segmentation must be a compressed RLE, with counts as a string, and score a number")


def coco_evaluation(
    truth: dict[str, Any],
    predictions: Detections,
    image_ids: Sequence[int | str],
    evaluation_type: type[COCOeval] = COCOeval,
) -> COCOeval:
    """Match predictions and objects with pycocotools. Return its evaluation, with the matches in `evalImgs`.

    Args:
        truth: content of a COCO instances json.
        predictions: in COCO's results format, masks as RLE.
        image_ids: images that were predicted; others do not count.
        evaluation_type: defines the IoU, see `BoundaryEvaluation`.
    """
    detections = [
        {**prediction, "id": i, "iscrowd": 0, "area": float(rle.area(prediction["segmentation"]))}
        for i, prediction in enumerate(predictions, start=1)
    ]
    # COCOeval takes an object with id 0 for one that was not found, so ids start at 1 whatever the file has.
    objects = [{"iscrowd": 0, **annotation, "id": i} for i, annotation in enumerate(truth["annotations"], start=1)]
    with redirect_stdout(io.StringIO()):
        evaluation = evaluation_type(_coco(truth, objects), _coco(truth, detections), "segm")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
    return evaluation


def mask_average_precision(evaluation: COCOeval) -> dict[str, float]:
    """Return `COCO_METRICS`, then the AP of each class (`AP-<class>`): 0..100, nan where nothing is annotated."""
    with redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats.tolist()  # -1: nothing annotated
    results = {name: math.nan if s == -1 else 100 * s for name, s in zip(COCO_METRICS, stats, strict=True)}
    precision = evaluation.eval["precision"][..., 0, -1]  # IoU threshold, recall, class; of any area
    for k, category in enumerate(evaluation.cocoGt.loadCats(evaluation.params.catIds)):
        valid = precision[:, :, k][precision[:, :, k] > -1]
        results[f"AP-{category['name']}"] = 100 * float(valid.mean()) if valid.size else math.nan
    return results


def _coco(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    return coco
