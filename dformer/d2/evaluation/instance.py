"""Average precision of instance masks, computed by pycocotools as COCO's official evaluation does."""

import io
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dformer.d2.evaluation.output import write_json
from dformer.errors import UserError


class InstanceEvaluator(DatasetEvaluator):
    """Mask AP of `instances`: AP (IoU 0.5..0.95), AP50, AP75, APs, APm, APl (by area), and AP of each class.

    At most 100 masks an image and class count. A class without annotations has AP nan and does not count; crowd regions
    are ignored as the official evaluation ignores them.

    Writes `coco_instances_results.json`, in COCO's results format, to `output_dir`.
    """

    def __init__(self, json_file: Path, dataset_ids: Mapping[int, int], output_dir: Path) -> None:
        """
        Args:
            json_file: COCO instances json, in dataset category ids.
            dataset_ids: contiguous class id -> dataset category id, of things.
            output_dir: where the predictions are written.
        """
        self._json_file = json_file
        self._dataset_ids = dataset_ids
        self._output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        self._image_ids: list[int | str] = []
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self._image_ids.append(image["image_id"])
            instances = output["instances"].to("cpu")
            # pycocotools wants (H, W, n), columns contiguous
            masks = np.asfortranarray(instances.pred_masks.numpy().transpose(1, 2, 0).astype(np.uint8))
            classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
            for mask, class_id, score in zip(rle.encode(masks), classes, scores, strict=True):
                self._predictions.append(
                    {
                        "image_id": image["image_id"],
                        "category_id": self._dataset_ids[class_id],
                        "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                        "score": score,
                    }
                )

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered_ids = comm.gather(self._image_ids)
        gathered_predictions = comm.gather(self._predictions)
        if not comm.is_main_process():
            return {}
        image_ids = list(chain.from_iterable(gathered_ids))
        predictions = list(chain.from_iterable(gathered_predictions))
        write_json(self._output_dir / "coco_instances_results.json", predictions)
        truth = json.loads(self._json_file.read_text())
        missing = set(image_ids) - {image["id"] for image in truth["images"]}
        if missing:
            raise UserError(
                f"{self._json_file} has no image with id {min(missing, key=str)!r}; it belongs to another data set"
            )
        return OrderedDict(segm=mask_average_precision(truth, predictions, image_ids))


def mask_average_precision(
    truth: dict[str, Any], predictions: list[dict[str, Any]], image_ids: list[int | str]
) -> dict[str, float]:
    """COCO's mask AP family over `image_ids`, 0..100, nan where nothing is annotated.

    Args:
        truth: content of a COCO instances json.
        predictions: in COCO's results format, masks as RLE.
        image_ids: images that were predicted; those without a prediction are missed objects, others do not count.
    """
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
        evaluation = COCOeval(_coco(truth, objects), _coco(truth, detections), "segm")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()

    parameters = evaluation.params
    precision = evaluation.eval["precision"][..., -1]  # IoU threshold, recall, class, area; -1: nothing annotated
    by_iou = dict(zip(parameters.iouThrs.round(2).tolist(), precision[..., 0], strict=True))
    by_area = {label: precision[..., i] for i, label in enumerate(parameters.areaRngLbl)}
    results: dict[str, float] = OrderedDict(
        AP=_mean(by_area["all"]),
        AP50=_mean(by_iou[0.5]),
        AP75=_mean(by_iou[0.75]),
        APs=_mean(by_area["small"]),
        APm=_mean(by_area["medium"]),
        APl=_mean(by_area["large"]),
    )
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for k, category_id in enumerate(parameters.catIds):
        results[f"AP-{names[category_id]}"] = _mean(by_area["all"][:, :, k])
    return results


def _coco(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    return coco


def _mean(precision: NDArray[np.float64]) -> float:
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else math.nan
