"""Semantic segmentation: IoU and accuracy from the confusion matrix of all pixels, and boundary IoU of classes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dformer.metrics.boundary import boundary, boundary_width
from dformer.utils.errors import UserError

Labels = NDArray[np.integer[Any]]  # (H, W) class ids 0..K-1; annotated ones may hold the ignore label, too


def confusion_matrix(annotated: Labels, predicted: Labels, num_classes: int, ignore_label: int) -> NDArray[np.int64]:
    """Count the pixels of each pair of classes; return the matrix (annotated K, predicted K).

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
    """Return mIoU, fwIoU (weighted by frequency), mACC, pACC (pixel accuracy) and each class's IoU (`IoU-<class>`).

    A class without annotated pixels has IoU nan and does not count in means.
    """
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
    """Count the pixels in the boundary of each class's region; return (3, K): in both maps, annotated, predicted.

    The paper defines boundaries of objects; here the region of a class in an image is the object. Pixels that are not
    annotated are cut out of both maps, so that they outline both alike.
    """
    void = annotated == ignore_label
    distance = boundary_width(*annotated.shape)

    def outline(labels: Labels) -> Labels:
        labels = np.where(void, num_classes, labels)
        return np.where(boundary(labels, distance), labels, num_classes)  # K where there is no boundary

    truth, prediction = outline(annotated), outline(predicted)
    counted = truth[truth == prediction], truth, prediction
    return np.array([np.bincount(classes.ravel(), minlength=num_classes + 1)[:-1] for classes in counted])


def boundary_metrics(counts: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, float]:
    """Return mBoundaryIoU and the boundary IoU of each class (`BoundaryIoU-<class>`), as `semantic_metrics` does."""
    results = dict.fromkeys(["mBoundaryIoU", *(f"BoundaryIoU-{name}" for name in class_names)], math.nan)
    hits, annotated, predicted = counts
    present = np.flatnonzero(annotated)
    if present.size:
        iou = 100 * (hits / np.maximum(annotated + predicted - hits, 1))[present]
        results["mBoundaryIoU"] = float(iou.mean())
        results.update(zip((f"BoundaryIoU-{class_names[k]}" for k in present.tolist()), iou.tolist(), strict=True))
    return results
