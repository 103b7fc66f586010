"""Damages of many kinds, applied to copies of real data: each is found and named, and the fatal ones stop a training.

The undamaged copies have no faults.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin import register_all_coco
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from dformer.d2.config import get_cfg
from dformer.d2.data import check_datasets, register_declarations
from dformer.d2.data.inspection import inspect_datasets
from dformer.data.checks.findings import FATAL, KINDS, NOTE, WARNING
from dformer.data.checks.inspection import Inspection
from dformer.utils.errors import UserError
from tests.d2.data.real import IMAGES, copy_of, declaration

pytestmark = pytest.mark.usefixtures("empty_catalogs")


# Damages. Each takes the folder of a copy.


def in_json(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (file,) = folder.glob("*.json")
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


def in_object(**values: Any) -> Callable[[Path], None]:
    """New values for the largest object that has polygons; an RLE without a size gets the image's."""

    def damage(content: Any) -> None:
        chosen = max(
            (a for a in content["annotations"] if isinstance(a["segmentation"], list)), key=lambda a: a["area"]
        )
        (size,) = ([i["height"], i["width"]] for i in content["images"] if i["id"] == chosen["image_id"])
        chosen.update(values)
        if isinstance(chosen["segmentation"], dict):
            chosen["segmentation"].setdefault("size", size)

    return in_json(damage)


def in_segment(values: dict[str, Any]) -> Callable[[Path], None]:
    return in_json(lambda content: content["annotations"][0]["segments_info"][0].update(values))


def file_of(folder: Path, place: str) -> Path:
    return sorted((folder / place).iterdir())[2]


def cut(place: str, share: float = 0.5) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = file_of(folder, place).read_bytes()
        file_of(folder, place).write_bytes(content[: int(share * len(content))])

    return damage


def redrawn(place: str, change: Callable[[Image.Image], Image.Image]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with Image.open(file_of(folder, place)) as picture:
            changed = change(picture)
        changed.save(file_of(folder, place))

    return damage


def pixels(place: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return redrawn(place, lambda picture: Image.fromarray(change(np.array(picture)).astype(np.uint8)))


def turned_by_exif(folder: Path) -> None:
    with Image.open(file_of(folder, "images")) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(file_of(folder, "images"), exif=exif)


def copied_image(folder: Path) -> None:
    first, second = sorted((folder / "images").iterdir())[:2]
    shutil.copyfile(folder / "labels" / f"{first.stem}.png", folder / "labels" / f"{second.stem}.png")
    shutil.copyfile(first, second)


def binary(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8) * 255).save(file)


def without_largest(picture: np.ndarray) -> np.ndarray:
    ids = rgb2id(picture)
    values, counts = np.unique(ids[ids > 0], return_counts=True)
    return id2rgb(np.where(ids == values[counts.argmax()], 0, ids))


def with_another(picture: np.ndarray) -> np.ndarray:
    picture[:40, :40] = (1, 2, 3)
    return picture


DAMAGES = [
    ("panoptic", lambda f: file_of(f, "images").unlink(), "file missing"),
    ("panoptic", lambda f: file_of(f, "pngs").unlink(), "file missing"),
    ("instance", cut("images"), "file unreadable"),
    ("semantic", cut("images", 0), "file unreadable"),
    ("panoptic", cut("pngs"), "file unreadable"),
    ("panoptic", redrawn("pngs", lambda p: p.convert("L")), "file unreadable"),
    ("semantic", redrawn("labels", lambda p: p.convert("RGB")), "file unreadable"),
    ("ids", cut("masks"), "cannot be loaded"),
    ("panoptic", redrawn("images", lambda p: p.resize((99, 77))), "size"),
    ("instance", redrawn("images", lambda p: p.resize((99, 77))), "size"),
    ("ids", redrawn("images", lambda p: p.resize((99, 77))), "size"),
    ("panoptic", turned_by_exif, "size"),
    ("panoptic", redrawn("pngs", lambda p: p.resize((99, 77), 0)), "size"),
    ("semantic", redrawn("labels", lambda p: p.resize((99, 77), 0)), "size"),
    ("panoptic", in_json(lambda c: c["images"][1].update(height=9)), "size"),
    ("ids", lambda f: file_of(f, "masks").unlink(), "image without annotation"),
    ("semantic", lambda f: file_of(f, "images").unlink(), "annotation without image"),
    ("semantic", copied_image, "duplicate image"),
    ("semantic", pixels("labels", lambda p: np.where(p == 3, 255, p)), "unknown label"),
    ("semantic", pixels("labels", lambda p: p * 0 + 11), "all void"),
    ("ids", binary, "binary masks"),
    ("panoptic", lambda f: (f / "panoptic.json").write_text('{"images": ['), "json unreadable"),
    ("instance", in_json(lambda c: c["annotations"][1].pop("category_id")), "wrong entry"),
    ("instance", in_json(lambda c: c["annotations"].clear()), "nothing annotated"),
    (
        "instance",
        in_json(lambda c: [a.update(image_id=f"{a['image_id']}") for a in c["annotations"]]),
        "nothing annotated",
    ),
    ("instance", in_object(segmentation=[[1, 1, 5, 5]]), "polygon too short"),
    ("instance", in_object(segmentation=[[9000, 10, 9050, 10, 9050, 60]]), "mask outside the image"),
    ("instance", in_object(segmentation=[[10, 10, 2000, 10, 2000, 60]]), "mask outside the image"),
    ("instance", in_object(segmentation=[[1, 1, 1, 1, 1, 1]]), "empty mask"),
    ("instance", in_object(segmentation={"size": [50, 50], "counts": [2500]}), "mask broken"),
    ("instance", in_object(segmentation={"counts": [5, 6, 7]}), "mask broken"),
    ("instance", in_object(segmentation={"counts": "not run lengths"}), "mask broken"),
    ("instance", in_object(segmentation=[[10, 10, 10**9, 10, 10, 60]]), "mask broken"),
    ("instance", in_object(area=1.0), "area"),
    ("instance", in_object(bbox=[200, 200, 20, 20]), "box"),
    ("panoptic", in_segment({"area": 10**7}), "area"),
    ("panoptic", in_segment({"bbox": [0, 0, 1, 1]}), "box"),
    ("panoptic", pixels("pngs", without_largest), "empty mask"),
    ("panoptic", pixels("pngs", with_another), "unknown segment"),
]


def inspected(folder: Path, *others: Path, queries: int = 100) -> list[Inspection]:
    names = [register_declarations({f.name: declaration(f)}, f)[0] for f in (folder, *others)]
    return inspect_datasets(names[:1], names[1:], queries, progress=False, workers=1)


def config(train: str, task: str, test: tuple[str, ...] = ()) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.INPUT.TASK = (train,), test, task
    return cfg


def kinds(inspection: Inspection, *levels: str) -> set[str]:
    return {f.kind for f in inspection.findings if f.level in levels}


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic", "ids"])
def test_undamaged_data_have_no_faults(data_dir: Path, tmp_path: Path, kind: str) -> None:
    folder = copy_of(data_dir, kind, tmp_path / "a")
    first, second = inspected(folder, copy_of(data_dir, kind, tmp_path / "b", part=1))
    assert not kinds(first, FATAL, WARNING) and not kinds(second, FATAL, WARNING)
    assert len(first.images) == first.total == IMAGES and all(image.objects for image in first.images)


@pytest.mark.parametrize("root", ["coco_panoptic", "coco_instance"])
def test_registered_data_have_no_faults(data_dir: Path, root: str) -> None:
    """What is odd in them is listed as such: images without objects, classes without an example."""
    register_all_coco(str(data_dir / root))
    suffix = "_panoptic" if root == "coco_panoptic" else ""
    for inspection in inspect_datasets([f"coco_2017_train{suffix}"], [f"coco_2017_val{suffix}"], progress=False):
        assert not kinds(inspection, FATAL, WARNING)
        assert "class without example" in kinds(inspection, NOTE)
        empty = "image without objects" in kinds(inspection, NOTE)
        assert empty == (root == "coco_instance" and "val" in inspection.name)


@pytest.mark.parametrize(("kind", "damage", "found"), DAMAGES)
def test_damage_is_found(data_dir: Path, tmp_path: Path, kind: str, damage: Callable, found: str) -> None:
    folder = copy_of(data_dir, kind, tmp_path / "data")
    damage(folder)
    (inspection,) = inspected(folder)
    findings = [f for f in inspection.findings if f.kind == found]
    assert findings and all(f.level == KINDS[found][0] and f.remedy and f.what for f in findings)
    assert str(folder) in findings[0].file or str(folder) in findings[0].what or found == "nothing annotated"
    cfg = config("data", "instance" if kind == "ids" else kind)
    if KINDS[found][0] == FATAL:
        with pytest.raises(UserError) as error:
            check_datasets(cfg)
        assert findings[0].what in str(error.value)
    else:
        assert not inspection.fatal
        check_datasets(cfg)


# Between two sets, and with the model


def test_images_that_are_trained_on_and_tested(data_dir: Path, tmp_path: Path) -> None:
    train, test = copy_of(data_dir, "semantic", tmp_path / "a"), copy_of(data_dir, "semantic", tmp_path / "b", part=1)
    shutil.copyfile(file_of(train, "images"), file_of(test, "images"))
    _, inspection = inspected(train, test)
    (finding,) = [f for f in inspection.findings if f.kind == "image in training and test"]
    assert finding.file == str(file_of(test, "images")) and str(file_of(train, "images")) in finding.what


@pytest.mark.parametrize("classes", [["building", "sky"], ["sky"]])
def test_other_class_names(data_dir: Path, tmp_path: Path, classes: list[str]) -> None:
    train, test = copy_of(data_dir, "semantic", tmp_path / "a"), copy_of(data_dir, "semantic", tmp_path / "b", part=1)
    declared = declaration(test)
    declared["classes"] = [*classes, *declared["classes"][len(classes) :]]
    register_declarations({"a": declaration(train)}, train)
    register_declarations({"b": declared}, test)
    _, inspection = inspect_datasets(["a"], ["b"], progress=False)
    differ = classes[0] == "building"
    assert ("other classes" in kinds(inspection, FATAL)) == differ
    if differ:
        with pytest.raises(UserError, match='class 0 is "sky" in a and "building"'):
            check_datasets(config("a", "semantic", ("b",)))
    else:
        check_datasets(config("a", "semantic", ("b",)))


def test_more_objects_than_queries(data_dir: Path, tmp_path: Path) -> None:
    (inspection,) = inspected(copy_of(data_dir, "instance", tmp_path / "a"), queries=10)
    crowded = [f for f in inspection.findings if f.kind == "more objects than queries"]
    assert 0 < len(crowded) <= IMAGES and "10 queries" in crowded[0].what


def test_a_part_of_the_images(data_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(data_dir, "panoptic", tmp_path / "a")
    register_declarations({"a": declaration(folder)}, folder)
    (inspection,) = inspect_datasets(["a"], limit=2, progress=False)
    assert (len(inspection.images), inspection.total) == (2, IMAGES)
    cfg = config("a", "panoptic")
    file_of(folder, "images").unlink()  # the third of six
    with pytest.raises(UserError, match=file_of(folder, "pngs").stem):
        check_datasets(cfg)
    cfg.DATASETS.CHECK_IMAGES = 0
    check_datasets(cfg)
