"""The base of the evaluators: predictions are written, read again, and scored as they are on disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tqdm import tqdm

from dformer.utils.errors import UserError

P = TypeVar("P")  # prediction of an image, as its file format has it
Image = dict[str, Any]  # input of a model or record of a data set: "file_name" and, but for semantic sets, "image_id"

# The end of errors about saved predictions that cannot be read.
REMEDY = (
    "predict again, name the right folder with --predictions (docs/evaluation.md shows its tree), or leave the task "
    "out of TEST.TASKS"
)


@dataclass(eq=False)
class TaskEvaluator(DatasetEvaluator, ABC, Generic[P]):
    """Evaluate one task: the outputs of a model, which are written to `folder`, or the predictions saved there."""

    folder: Path

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.is_saved = False  # the predictions were on disk before

    def process(self, inputs: list[Image], outputs: list[dict[str, Any]]) -> None:
        """Write and count the outputs of a model."""
        for image, output in zip(inputs, outputs, strict=True):
            self.add(image, self.write(image, output))

    def process_saved(self, images: Sequence[Image]) -> None:
        """Count this process's share of the saved predictions for `images`, all of the data set."""
        self.is_saved = True
        read_prediction = self.open_saved(images)
        share = InferenceSampler(len(images))  # as the loader shares out, so that sums have the same order
        for i in tqdm(share, str(self.folder), disable=not comm.is_main_process()):
            self.add(images[i], read_prediction(images[i]))

    @abstractmethod
    def write(self, image: Image, output: dict[str, Any]) -> P:
        """Convert the output for an image to its prediction, which is returned; write its own file, if it has one."""

    @abstractmethod
    def open_saved(self, images: Sequence[Image]) -> Callable[[Image], P]:
        """Open the saved predictions for `images`. Return a function that reads the prediction for one of them."""

    @abstractmethod
    def add(self, image: Image, prediction: P) -> None:
        """Count a prediction."""


def check_complete(source: Path, expected: Iterable[Any], found: Iterable[Any]) -> None:
    """Check that the predictions `found` in `source`, ids or file names, are those `expected` for a data set."""
    expected, found = set(expected), set(found)
    differences = {"missing": expected - found, "not of the data set": found - expected}
    faults = [f"{len(names)} {kind}, such as {min(names, key=str)!r}" for kind, names in differences.items() if names]
    if faults:
        raise UserError(
            f"{source}: of {len(expected)} images of the data set, predictions are {' and '.join(faults)}; "
            "predict this data set (DATASETS.TEST) anew, all of it and no more"
        )
