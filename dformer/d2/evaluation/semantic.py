"""Semantic segmentation of a model's `sem_seg`: mIoU and accuracies."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm
from PIL import Image

from dformer.d2.evaluation.evaluator import TaskEvaluator, check_complete
from dformer.data.images import read_labels
from dformer.metrics.semantic import Labels, boundary_counts, boundary_metrics, confusion_matrix, semantic_metrics
from dformer.utils.errors import UserError


class SemanticEvaluator(TaskEvaluator[Labels]):
    """Evaluate `sem_seg`: mIoU, fwIoU, mACC, pACC and the IoU of each class, see `semantic_metrics`.

    Pixels with the ignore label do not count, whatever is predicted there, nor classes without annotated pixels, as in
    Detectron2's own evaluator since version 0.6. The folder gets `semantic/<name>.png`, a grey picture (8 bits, or 16
    for values above 255) of `label_values`.

    Args:
        read_truth: returns the annotated labels for an input of the model.
        name_of: returns the name of its prediction, <name>.png.
        class_names: of the contiguous ids 0..K-1.
        label_values: the value in the predictions of each class.
        ignore_label: of pixels that are not annotated.
        folder: of the predictions.
        with_boundary: adds mBoundaryIoU and the BoundaryIoU of each class, see `boundary_counts`.
    """

    def __init__(
        self,
        read_truth: Callable[[dict[str, Any]], Labels],
        name_of: Callable[[dict[str, Any]], str],
        class_names: Sequence[str],
        label_values: Sequence[int],
        ignore_label: int,
        folder: Path,
        with_boundary: bool = False,
    ) -> None:
        self.read_truth = read_truth
        self.class_names = class_names
        self.ignore_label = ignore_label
        self._name_of = name_of
        self._values = np.array(label_values, np.uint8 if max(label_values) < 256 else np.uint16)
        self._class_ids = {value: k for k, value in enumerate(label_values)}
        self._png_root = folder / "semantic"
        self._with_boundary = with_boundary
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
                "set DATASETS.TEST to a data set with the classes that the model was trained on"
            )
        predicted = scores.argmax(0).cpu().numpy()
        png_file = self._png_root / self._name_of(image)
        png_file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._values[predicted]).save(png_file)
        return predicted

    def open_saved(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Labels]:
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
                    f"({min(self._class_ids)}..{max(self._class_ids)}); docs/evaluation.md lists the values"
                )
            predicted[values == value] = self._class_ids[value]
        return predicted

    def add(self, image: dict[str, Any], prediction: Labels) -> None:
        annotated, num_classes = self.read_truth(image), len(self.class_names)
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
        return {"sem_seg": results}


def prediction_names(files: Iterable[str]) -> dict[str, str]:
    """Return each image file's name of its prediction: its path below the images' common folder, with the ending .png.

    Raises:
        UserError: two images differ in their ending only.
    """
    paths = {file: os.path.abspath(file) for file in files}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    names = {file: os.path.splitext(os.path.relpath(path, folder))[0] + ".png" for file, path in paths.items()}
    owners: dict[str, str] = {}
    for file, name in names.items():
        if owners.setdefault(name, file) != file:
            raise UserError(f"images {owners[name]} and {file} would have one prediction file, {name}; rename one")
    return names
