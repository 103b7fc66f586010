"""Semantic segmentation: intersection over union and accuracy, from the confusion matrix of all pixels."""

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image

from dformer.d2.evaluation.output import TaskEvaluator, check_complete
from dformer.data.images import read_labels
from dformer.metrics.boundary import boundary, boundary_width
from dformer.utils.errors import UserError

Labels = NDArray[np.integer[Any]]


class SemanticEvaluator(TaskEvaluator[Labels]):
    """mIoU, fwIoU (weighted by frequency), mACC, pACC (pixel accuracy) of `sem_seg`, and IoU of each class.

    Pixels with the ignore label do not count, whatever is predicted there. A class without annotated pixels has IoU nan
    and does not count, as in Detectron2's own evaluator since version 0.6. With `with_boundary`, also mBoundaryIoU and
    BoundaryIoU of each class, see `boundary_counts`.

    In the folder: `semantic/<name>.png`, a grey picture (8 bits, or 16 for values above 255) of `label_values`.
    """

    def __init__(
        self,
        labels_of: Callable[[dict[str, Any]], Labels],
        name_of: Callable[[dict[str, Any]], str],
        class_names: Sequence[str],
        label_values: Sequence[int],
        ignore_label: int,
        folder: Path,
        with_boundary: bool = False,
    ) -> None:
        """
        Args:
            labels_of: gives the annotated contiguous class ids (H, W) for an input of the model.
            name_of: gives the name of its prediction, <name>.png.
            class_names: of the contiguous ids 0..K-1.
            label_values: what stands for them in the predictions.
            ignore_label: marks pixels that are not annotated.
            folder: of the predictions.
        """
        self.labels_of = labels_of
        self._name_of = name_of
        self.class_names = class_names
        self._values = np.array(label_values, np.uint8 if max(label_values) < 256 else np.uint16)
        self._class_ids = {value: k for k, value in enumerate(label_values)}
        self.ignore_label = ignore_label
        self._with_boundary = with_boundary
        self._png_root = folder / "semantic"
        super().__init__(folder)

    def reset(self) -> None:
        super().reset()
        num_classes = len(self.class_names)
        self._confusion = np.zeros((num_classes, num_classes), np.int64)  # annotated x predicted
        self._boundary_counts = np.zeros((3, num_classes), np.int64)

    def write(self, image: dict[str, Any], output: dict[str, Any]) -> Labels:
        scores, num_classes = output["sem_seg"], len(self.class_names)
        if len(scores) != num_classes:
            raise UserError(
                f"the model predicts {len(scores)} classes, the data set has {num_classes}; "
                "evaluate on a data set with the classes that the model was trained on"
            )
        predicted = scores.argmax(0).cpu().numpy()
        png_file = self._png_root / self._name_of(image)
        png_file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._values[predicted]).save(png_file)
        return predicted

    def read(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Labels]:
        found = (str(path.relative_to(self._png_root)) for path in self._png_root.rglob("*.png"))
        check_complete(self._png_root, (self._name_of(image) for image in images), found)
        return lambda image: self._read_png(self._png_root / self._name_of(image))

    def _read_png(self, png_file: Path) -> Labels:
        values = read_labels(png_file)
        predicted = np.zeros(values.shape, np.int64)
        for value in np.unique(values).tolist():
            if value not in self._class_ids:
                raise UserError(
                    f"{png_file} has the value {value}, which is no label of the data set's classes "
                    f"({min(self._class_ids)}..{max(self._class_ids)}); docs/evaluation.md says which value is which"
                )
            predicted[values == value] = self._class_ids[value]
        return predicted

    def add(self, image: dict[str, Any], prediction: Labels) -> None:
        annotated = self.labels_of(image)
        num_classes = len(self.class_names)
        try:
            self._confusion += confusion_matrix(annotated, prediction, num_classes, self.ignore_label)
        except UserError as error:
            raise UserError(f"semantic annotation of {image['file_name']}: {error}") from error
        if self._with_boundary:
            self._boundary_counts += boundary_counts(annotated, prediction, num_classes, self.ignore_label)

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = comm.gather((self._confusion, self._boundary_counts))
        if not comm.is_main_process():
            return {}
        confusion, counts = (np.sum(parts, axis=0) for parts in zip(*gathered, strict=True))
        results = semantic_metrics(confusion, self.class_names)
        if self._with_boundary:
            results |= boundary_metrics(counts, self.class_names)
        return OrderedDict(sem_seg=results)


def prediction_names(files: Iterable[str]) -> dict[str, str]:
    """Image file -> name of its prediction: its path in the folder that holds all images, with the ending .png.

    Raises:
        UserError: two images differ in their ending only.
    """
    paths = {file: os.path.abspath(file) for file in files}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for file, path in paths.items():
        names[file] = os.path.splitext(os.path.relpath(path, folder))[0] + ".png"
        owner = owners.setdefault(names[file], file)
        if owner != file:
            raise UserError(f"images {owner} and {file} would have one prediction file, {names[file]}; rename one")
    return names


def confusion_matrix(annotated: Labels, predicted: Labels, num_classes: int, ignore_label: int) -> NDArray[np.int64]:
    """Pixels of each pair of classes, (annotated K, predicted K).

    Args:
        annotated: (H, W), 0..K-1 or `ignore_label`.
        predicted: (H, W), 0..K-1.

    Raises:
        UserError: the sizes differ, or `annotated` has other labels.
    """
    if annotated.shape != predicted.shape:
        raise UserError(f"its size {annotated.shape} is not the prediction's, {predicted.shape} (height, width)")
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


def boundary_counts(annotated: Labels, predicted: Labels, num_classes: int, ignore_label: int) -> NDArray[np.int64]:
    """Pixels (3, K) in the boundary of each class's region: in both annotation and prediction, annotated, predicted.

    The paper has boundaries of objects; here the region of a class in an image is the object. What is not annotated is
    cut out of both pictures, so that it outlines both alike.

    Args:
        annotated: (H, W), 0..K-1 or `ignore_label`.
        predicted: (H, W), 0..K-1.
    """
    void = annotated == ignore_label
    distance = boundary_width(*annotated.shape)

    def outlined(labels: Labels) -> Labels:
        """(H, W) class of the pixels in a boundary, K elsewhere."""
        labels = np.where(void, num_classes, labels)
        return np.where(boundary(labels, distance), labels, num_classes)

    true, seen = outlined(annotated), outlined(predicted)
    counted = true[true == seen], true, seen
    return np.array([np.bincount(classes.ravel(), minlength=num_classes + 1)[:-1] for classes in counted])


def boundary_metrics(counts: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, float]:
    """Metrics of `boundary_counts`, summed over images: 0..100, nan where nothing is annotated."""
    results = dict.fromkeys(["mBoundaryIoU", *(f"BoundaryIoU-{name}" for name in class_names)], math.nan)
    hits, annotated, predicted = counts
    present = np.flatnonzero(annotated)
    if present.size:
        iou = 100 * (hits / np.maximum(annotated + predicted - hits, 1))[present]
        results["mBoundaryIoU"] = float(iou.mean())
        results.update(zip((f"BoundaryIoU-{class_names[k]}" for k in present.tolist()), iou.tolist(), strict=True))
    return results
