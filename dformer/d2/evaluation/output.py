"""Predictions on disk, and what all evaluators share: what is written is what is scored."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tqdm import tqdm

from dformer.utils.errors import UserError

P = TypeVar("P")  # prediction of an image, as its file format has it
Image = dict[str, Any]  # input of a model or record of a data set: "file_name" and, but for semantic sets, "image_id"


class TaskEvaluator(DatasetEvaluator, ABC, Generic[P]):
    """Scores a task: the outputs of a model, which it writes to `folder`, or the predictions that lie there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.is_saved = False  # the predictions were on disk before

    def process(self, inputs: list[Image], outputs: list[dict[str, Any]]) -> None:
        """Write and score the outputs of a model."""
        for image, output in zip(inputs, outputs, strict=True):
            self.add(image, self.write(image, output))

    def process_saved(self, images: Sequence[Image]) -> None:
        """Score this process's share of the predictions in the folder.

        Args:
            images: all of the data set.

        Raises:
            UserError: predictions are missing, are for other images, or do not fit the data set.
        """
        self.is_saved = True
        prediction_of = self.read(images)
        share = InferenceSampler(len(images))  # as the loader shares out, so that sums have the same order
        for i in tqdm(share, str(self.folder), disable=not comm.is_main_process()):
            self.add(images[i], prediction_of(images[i]))

    @abstractmethod
    def write(self, image: Image, output: dict[str, Any]) -> P:
        """Write what is a file of its own. Returns the prediction."""

    @abstractmethod
    def read(self, images: Sequence[Image]) -> Callable[[Image], P]:
        """Open the saved predictions, which are to be those for `images`. Returns what gives the one for an image."""

    @abstractmethod
    def add(self, image: Image, prediction: P) -> None:
        """Count a prediction."""


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A new folder for all processes to write to; in the end, and without an error, it takes the place of `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    if comm.is_main_process():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    comm.synchronize()
    try:
        yield partial
        comm.synchronize()
        if comm.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        if comm.is_main_process():
            shutil.rmtree(partial, ignore_errors=True)


# What to do where saved predictions cannot be read.
PREDICT = (
    "predict again, name the right folder with --predictions (docs/evaluation.md shows its tree), or leave the task "
    "out of TEST.TASKS"
)


def check_complete(where: Path, expected: Iterable[Any], found: Iterable[Any]) -> None:
    """Check that saved predictions are those of a data set's images, no more and no less.

    Args:
        where: file or folder of the predictions.
        expected, found: ids or file names.

    Raises:
        UserError: some are missing or too many, which may be the case for predictions for another data set.
    """
    expected, found = set(expected), set(found)
    faults = [
        f"{len(names)} {what}, such as {min(names, key=str)!r}"
        for what, names in (("missing", expected - found), ("not of the data set", found - expected))
        if names
    ]
    if faults:
        raise UserError(
            f"{where}: of {len(expected)} images of the data set, predictions are {' and '.join(faults)}; "
            "predict this data set (DATASETS.TEST) anew, all of it and no more"
        )
