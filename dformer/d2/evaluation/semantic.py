"""Semantic segmentation of a model's `sem_seg`: mIoU and accuracies."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils import comm
from PIL import Image

from dformer.d2.evaluation.evaluator import TaskEvaluator, check_complete
from dformer.data.images import read_labels
from dformer.metrics.semantic import Labels, boundary_counts, boundary_metrics, confusion_matrix, semantic_metrics
from dformer.utils import groups
from dformer.utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class SemanticEvaluator(TaskEvaluator[Labels]):
    """Evaluate `sem_seg`: mIoU, fwIoU, mACC, pACC and the IoU of each class, see `semantic_metrics`.

    Pixels with the ignore label do not count, whatever is predicted there, nor do classes without annotated pixels,
    as in Detectron2's own evaluator since version 0.6. The folder gets `semantic/<name>.png`, a grey picture of
    `label_values` (8 bits, or 16 above 255). `confusion` counts this process's pixels, (annotated K, predicted K).
    """

    metadata: Metadata  # of the data set: `stuff_classes`, `ignore_label`
    label_values: Sequence[int]  # the value of each class in the predictions
    read_truth: Callable[[dict[str, Any]], Labels]  # returns the annotated labels for an input of the model
    name_of: Callable[[dict[str, Any]], str]  # returns the name of its prediction, <name>.png
    with_boundary: bool = False  # adds mBoundaryIoU and the BoundaryIoU of each class, see `boundary_counts`

    def __post_init__(self) -> None:
        super().__post_init__()
        self._values = np.array(self.label_values, np.uint8 if max(self.label_values) < 256 else np.uint16)
        self._png_root = self.folder / "semantic"

    def reset(self) -> None:
        super().reset()
        num_classes = len(self.label_values)
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self._boundary_counts = np.zeros((3, num_classes), np.int64)

    def write(self, image: dict[str, Any], output: dict[str, Any]) -> Labels:
        scores, num_classes = output["sem_seg"], len(self.label_values)
        if len(scores) != num_classes:
            raise UserError(
                f"the model predicts {len(scores)} classes, the data set has {num_classes}; "
                "set DATASETS.TEST to a data set with the classes that the model was trained on"
            )
        predicted = scores.argmax(0).cpu().numpy()
        png_file = self._png_root / self.name_of(image)
        png_file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._values[predicted]).save(png_file)
        return predicted

    def open_saved(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Labels]:
        found = (str(path.relative_to(self._png_root)) for path in self._png_root.rglob("*.png"))
        check_complete(self._png_root, (self.name_of(image) for image in images), found)
        class_ids = {value: k for k, value in enumerate(self.label_values)}
        return lambda image: read_labels(self._png_root / self.name_of(image), class_ids)

    def add(self, image: dict[str, Any], prediction: Labels) -> None:
        annotated = self.read_truth(image)
        num_classes, ignore_label = len(self.label_values), self.metadata.ignore_label
        try:
            self.confusion += confusion_matrix(annotated, prediction, num_classes, ignore_label)
        except UserError as error:
            raise UserError(f"semantic annotation of {image['file_name']}: {error}") from error
        if self.with_boundary:
            self._boundary_counts += boundary_counts(annotated, prediction, num_classes, ignore_label)

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = groups.gather((self.confusion, self._boundary_counts))
        if not comm.is_main_process():
            return {}
        confusion, counts = (np.sum(parts, axis=0) for parts in zip(*gathered, strict=True))
        names = self.metadata.stuff_classes
        annotated = [name for name, count in zip(names, confusion.sum(1), strict=True) if count]
        if len(annotated) == 1:
            only = f'{self.metadata.name}: all annotated pixels are "{annotated[0]}"'
            logger.warning(f"{only}: mIoU is of one class alone, and says nothing")
        results = semantic_metrics(confusion, names)
        if self.with_boundary:
            results |= boundary_metrics(counts, names)
        return {"sem_seg": results}


def prediction_names(files: Iterable[str]) -> dict[str, str]:
    """Return the prediction file of each image file: its path below the images' common folder, ending in .png."""
    paths = {file: os.path.abspath(file) for file in files}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    names = {file: os.path.splitext(os.path.relpath(path, folder))[0] + ".png" for file, path in paths.items()}
    owners: dict[str, str] = {}
    for file, name in names.items():
        if owners.setdefault(name, file) != file:
            raise UserError(f"images {owners[name]} and {file} would have one prediction file, {name}; rename one")
    return names
