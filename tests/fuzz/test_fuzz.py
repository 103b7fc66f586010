"""Five surfaces that meet what others made: whatever the input, a `UserError` or a result, soon, in little memory."""

import contextlib
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dformer.d2.checkpoint.zoo import config_of_checkpoint
from dformer.d2.config import get_cfg, merge_config
from dformer.d2.data import register_declarations
from dformer.d2.data.datasets import get_metadata, loading, num_classes
from dformer.d2.data.inspection import inspect_datasets
from dformer.d2.data.mappers import TrainMapper
from dformer.data.annotations import annotation_reader
from dformer.data.declarations import parse
from dformer.data.images import read_image, read_labels, read_panoptic_png, read_size
from dformer.weights.checkpoint import read_checkpoint
from tests.fuzz import inputs
from tests.fuzz.bounds import address_space, bounded

FEW, MANY = 60, 2500


def config(folder: Path, drawn: tuple[list[str], str, Any]) -> None:
    overrides, text, declaration = drawn
    cfg, file = get_cfg(), folder / "config.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    with bounded():
        merge_config(cfg.clone(), None, overrides)
    with bounded():
        merge_config(cfg.clone(), str(file), overrides)
    with bounded():
        config_of_checkpoint({"config": text, "model": {}}, "model.pth")
    with bounded():
        parse(declaration, folder, "declared: ")


def checkpoint(folder: Path, drawn: tuple[str, bytes]) -> None:
    name, content = drawn
    file = folder / name
    file.write_bytes(content)
    with bounded():
        weights = read_checkpoint(file)["model"]
        assert sum(tensor.clone().nbytes for tensor in weights.values()) <= 100 * len(content)


def image(folder: Path, drawn: tuple[str, bytes]) -> None:
    file = folder / "image"
    file.write_bytes(drawn[1])
    for read in (read_size, read_image, read_labels, read_panoptic_png):
        with bounded():
            read(file)


def coco_json(folder: Path, drawn: tuple[str, bytes]) -> None:
    form, text = drawn
    (folder / "a.json").write_bytes(text)
    (folder / "a.png").write_bytes(inputs.PANOPTIC_PNG)
    _check_and_train(folder, form)


def panoptic_png(folder: Path, drawn: tuple[str, bytes]) -> None:
    (folder / "a.json").write_text(inputs.json.dumps(inputs.PANOPTIC))
    (folder / "a.png").write_bytes(drawn[1])
    _check_and_train(folder, "coco_panoptic")


_numbers = itertools.count()


def _check_and_train(folder: Path, form: str) -> None:
    """What the checks say of a data set and, where they find nothing fatal, what training makes of it."""
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


SURFACES: dict[str, tuple[Callable[[Path, Any], None], st.SearchStrategy[Any]]] = {
    "config values": (config, st.tuples(inputs.OVERRIDES, inputs.YAML, inputs.ODD)),
    "checkpoint bytes": (checkpoint, inputs.damaged(inputs.CHECKPOINTS) | inputs.crafted()),
    "image bytes": (image, inputs.IMAGES),
    "COCO json": (coco_json, inputs.annotations()),
    "panoptic PNG": (panoptic_png, inputs.damaged({"PNG": inputs.PANOPTIC_PNG}) | inputs.IMAGES),
}


def fuzz(surface: str, folder: Path, examples: int, derandomize: bool) -> None:
    check, strategy = SURFACES[surface]
    logging.disable(logging.CRITICAL)
    run = settings(
        max_examples=examples,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(drawn=strategy)(lambda drawn: check(folder, drawn)))
    try:
        with address_space(), contextlib.redirect_stdout(None):
            run()
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("surface", SURFACES)
def test_a_few(surface, tmp_path):
    """The same at each call."""
    fuzz(surface, tmp_path, FEW, derandomize=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("surface", SURFACES)
def test_many(surface, tmp_path):
    fuzz(surface, tmp_path, MANY, derandomize=False)
