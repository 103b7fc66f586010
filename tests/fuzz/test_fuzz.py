"""Files that others made: whatever the input, a result or a `UserError`, soon and in little memory."""

import contextlib
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as rle

from dformer.d2.config import get_cfg, merge_text
from dformer.d2.data import register_declarations
from dformer.d2.data.datasets import get_metadata, get_records, num_classes
from dformer.d2.data.inspection import inspect_datasets
from dformer.d2.data.mappers import TrainMapper
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image, read_labels, read_panoptic_png, read_size
from dformer.data.segmentations import fault_of
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.weights.checkpoint import read_checkpoint
from tests.fuzz import inputs
from tests.fuzz.bounds import bounded


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
            records = get_records(name)
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
        with contextlib.redirect_stdout(None):
            for seed in seeds:
                try:
                    read(tmp_path, Random(seed))
                except Exception as error:
                    raise AssertionError(f"input {seed}") from error
    finally:
        logging.disable(logging.NOTSET)


# Inputs that once crashed a reader, took all memory or passed a check.

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0]
EMPTY = rle.frPyObjects({"size": [24, 24], "counts": [576]}, 24, 24)


@pytest.mark.parametrize("coordinate", [float("nan"), float("inf"), 1e9, -1e300])
def test_a_polygon_far_away_crashed_pycocotools(coordinate):
    assert fault_of([SQUARE], (24, 24)) == ""
    far = [*SQUARE[:5], coordinate]
    assert fault_of([SQUARE, far], (24, 24))
    record = {"file_name": "a.jpg", "annotations": [{"segmentation": [far], "category_id": 0}]}
    with pytest.raises(UserError, match="a.jpg"):
        annotation_reader("instance", 1, 255)(record, (24, 24))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [10**6, 10**6], "counts": "0"},
        {"size": [24, 24], "counts": [10**12]},
        {"size": [24, 24], "counts": [-5, 581]},
        {"size": None, "counts": "0"},
        {"size": [24, 24], "counts": None},
        "polygon",
        [["a"]],
    ],
)
def test_run_lengths_were_believed(segmentation):
    with bounded():
        assert fault_of(segmentation, (24, 24))
    assert not fault_of(EMPTY, (24, 24))


@pytest.mark.parametrize("side", [10**5, 2**31 - 1])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP"])
def test_a_header_may_claim_any_size(tmp_path, form, side):
    content = inputs.PICTURES[form]
    (tmp_path / "a").write_bytes(inputs.png(side, side) if form == "PNG" else inputs.claiming(content, side))
    for read in (read_size, read_image):
        with bounded():
            read(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        pytest.param("a.json", b"[" * 100_000, read_json, id="deep lists overran the stack"),
        pytest.param("a.jpg", inputs.PICTURES["EPS"], read_image, id="Pillow runs another program"),
        # Its pixels are near what was saved, ids or not.
        pytest.param("a.png", inputs.PICTURES["JPEG"], read_panoptic_png, id="segment ids in another format than PNG"),
        pytest.param("a.pkl", inputs.calling("__builtin__ bytes", 10**11), read_checkpoint, id="bytes of any number"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, read):
    (tmp_path / name).write_bytes(content)
    with bounded(), pytest.raises(UserError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["- 1", "2024-99-99", "MODEL: 3", "a: &a\n  b: *a", "!!python/object/apply:os.system [a]"]
)
def test_a_checkpoints_config_that_is_none(text):
    with bounded(), pytest.raises(UserError, match="model.pth"):
        merge_text(get_cfg(), text, "the config in model.pth")


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(10**6, 10**6), torch.zeros(3, device="meta")])
def test_a_tensor_that_repeats_one_number_or_has_none(tmp_path, tensor):
    torch.save({"model": {"w": tensor}}, tmp_path / "a.pth")
    with bounded(), pytest.raises(UserError, match="a.pth"):
        read_checkpoint(tmp_path / "a.pth")
