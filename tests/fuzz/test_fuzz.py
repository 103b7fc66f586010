"""Files that others made: whatever the input, a result or a `UserError`, soon and in little memory."""

import contextlib
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dformer.d2.data import register_declarations
from dformer.d2.data.datasets import get_metadata, loading, num_classes
from dformer.d2.data.inspection import inspect_datasets
from dformer.d2.data.mappers import TrainMapper
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image, read_labels, read_panoptic_png, read_size
from dformer.weights.checkpoint import read_checkpoint
from tests.fuzz import inputs
from tests.fuzz.bounds import address_space, bounded


def checkpoint(folder: Path, random: Random) -> None:
    name, content = random.choice(list(inputs.CHECKPOINTS.items()))
    name, content = inputs.crafted(random) if random.random() < 0.5 else (name, inputs.damaged(random, content))
    (folder / name).write_bytes(content)
    with bounded():
        weights = read_checkpoint(folder / name)["model"]
        assert sum(tensor.clone().nbytes for tensor in weights.values()) <= 100 * len(content)


def image(folder: Path, random: Random) -> None:
    (folder / "image").write_bytes(inputs.image(random))
    for read in (read_size, read_image, read_labels, read_panoptic_png):
        with bounded():
            read(folder / "image")


def coco_json(folder: Path, random: Random) -> None:
    form = random.choice(sorted(inputs.FORMS))
    (folder / "a.json").write_bytes(inputs.annotations(random, form))
    (folder / "a.png").write_bytes(inputs.PANOPTIC_PNG)
    _check_and_train(folder, form)


def panoptic_png(folder: Path, random: Random) -> None:
    is_panoptic = random.random() < 0.7
    (folder / "a.png").write_bytes(inputs.damaged(random, inputs.PANOPTIC_PNG) if is_panoptic else inputs.image(random))
    (folder / "a.json").write_text(json.dumps(inputs.PANOPTIC))
    _check_and_train(folder, "coco_panoptic")


_numbers = itertools.count()


def _check_and_train(folder: Path, form: str) -> None:
    """Check a data set and, if nothing fatal is found, map its images for training."""
    name = f"fuzz_{next(_numbers)}"
    pngs = {"pngs": "."} if form == "coco_panoptic" else {}
    register_declarations({name: {"form": form, "images": ".", "annotations": "a.json", **pngs}}, folder)
    task = "panoptic" if pngs else "instance"
    try:
        with bounded():
            get_metadata(name)
        with bounded():
            if inspect_datasets([name], progress=False, workers=1)[0].fatal:
                return
            with loading(name):
                records = DatasetCatalog.get(name)
            mapper = TrainMapper([], annotation_reader(task, num_classes(name, task), 255), "RGB")
            for record in records:
                with bounded():
                    mapper(record)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 2500), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("read", [checkpoint, image, coco_json, panoptic_png])
def test_damaged_files(read: Callable[[Path, Random], None], seeds: range, tmp_path: Path) -> None:
    logging.disable(logging.CRITICAL)
    try:
        with address_space(), contextlib.redirect_stdout(None):
            for seed in seeds:
                try:
                    read(tmp_path, Random(seed))
                except Exception as error:
                    raise AssertionError(f"input {seed}") from error
    finally:
        logging.disable(logging.NOTSET)
