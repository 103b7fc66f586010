"""Semantic segmentation: intersection over union and accuracy, from the confusion matrix of all pixels."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image

from dformer.errors import UserError

Labels = NDArray[np.integer[Any]]


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU (weighted by frequency), mACC, pACC (pixel accuracy) of `sem_seg`, and IoU of each class.

    Pixels with the ignore label do not count, whatever is predicted there. A class without annotated pixels has IoU nan
    and does not count, as in Detectron2's own evaluator since version 0.6.

    Writes the predicted labels, contiguous class ids, to `semantic/<name of the image>.png` in `output_dir`.
    """

    def __init__(
        self,
        labels_of: Callable[[dict[str, Any]], Labels],
        class_names: Sequence[str],
        ignore_label: int,
        output_dir: Path,
    ) -> None:
        """
        Args:
            labels_of: gives the annotated contiguous class ids (H, W) for an input of the model.
            class_names: of the contiguous ids 0..K-1.
            ignore_label: marks pixels that are not annotated.
            output_dir: where the predictions are written.
        """
        self._labels_of = labels_of
        self._class_names = class_names
        self._ignore_label = ignore_label
        self._png_root = output_dir / "semantic"
        self.reset()

    def reset(self) -> None:
        self._confusion = np.zeros((len(self._class_names),) * 2, dtype=np.int64)  # annotated x predicted

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        num_classes = len(self._class_names)
        for image, output in zip(inputs, outputs, strict=True):
            if len(output["sem_seg"]) != num_classes:
                raise UserError(
                    f"the model predicts {len(output['sem_seg'])} classes, the data set has {num_classes}; "
                    "evaluate on a data set with the classes that the model was trained on"
                )
            predicted = output["sem_seg"].argmax(0).cpu().numpy()
            annotated = self._labels_of(image)
            try:
                self._confusion += confusion_matrix(annotated, predicted, num_classes, self._ignore_label)
            except UserError as error:
                raise UserError(f"semantic annotation of {image['file_name']}: {error}") from error
            self._write(Path(image["file_name"]).stem, predicted)

    def evaluate(self) -> dict[str, dict[str, float]]:
        confusion = comm.gather(self._confusion)
        if not comm.is_main_process():
            return {}
        return OrderedDict(sem_seg=semantic_metrics(np.sum(confusion, axis=0), self._class_names))

    def _write(self, name: str, labels: Labels) -> None:
        self._png_root.mkdir(parents=True, exist_ok=True)
        dtype = np.uint8 if len(self._class_names) <= 256 else np.uint16
        Image.fromarray(labels.astype(dtype)).save(self._png_root / f"{name}.png")


def confusion_matrix(annotated: Labels, predicted: Labels, num_classes: int, ignore_label: int) -> NDArray[np.int64]:
    """Pixels of each pair of classes, (annotated K, predicted K).

    Args:
        annotated: (H, W), 0..K-1 or `ignore_label`.
        predicted: (H, W), 0..K-1.

    Raises:
        UserError: the sizes differ, or `annotated` has other labels.
    """
    if annotated.shape != predicted.shape:
        raise UserError(f"its size {annotated.shape} is not the image's, {predicted.shape} (height, width)")
    valid = annotated != ignore_label
    labels = annotated[valid].astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"it has labels {labels.min()}..{labels.max()}, but classes are 0..{num_classes - 1} "
            f"and {ignore_label} is ignored; prepare the annotations so"
        )
    pairs = np.bincount(num_classes * labels + predicted[valid], minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def semantic_metrics(confusion: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, float]:
    """Metrics of a confusion matrix (annotated K, predicted K), 0..100, nan where nothing is annotated."""
    results = dict.fromkeys(["mIoU", "fwIoU", "mACC", "pACC", *(f"IoU-{name}" for name in class_names)], math.nan)
    present = np.flatnonzero(confusion.sum(1))
    if present.size:
        hits, annotated, predicted = (a[present] for a in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
        iou = 100 * hits / (annotated + predicted - hits)
        results["mIoU"] = float(iou.mean())
        results["fwIoU"] = float(np.average(iou, weights=annotated))
        results["mACC"] = float(100 * (hits / annotated).mean())
        results["pACC"] = float(100 * hits.sum() / annotated.sum())
        results.update({f"IoU-{class_names[k]}": float(value) for k, value in zip(present.tolist(), iou, strict=True)})
    return results
