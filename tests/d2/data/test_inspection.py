"""Damages of many kinds, applied to copies of real data: each is found, and the fatal ones stop a training."""

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
from PIL import Image, ImageDraw

from dformer.d2.config import get_cfg
from dformer.d2.data import check_datasets, register_declarations
from dformer.d2.data.inspection import Inspection, inspect_datasets
from dformer.d2.engine.run import run
from dformer.data.checks.findings import FATAL, KINDS, NOTE, WARNING
from dformer.utils.errors import UserError
from tests.d2.data.real import IMAGES, copy_of, declaration
from tests.d2.tiny import own_loggers, tiny_cfg

pytestmark = pytest.mark.usefixtures("empty_catalogs")


# Damages. Each takes the folder of a copy.


def in_json(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (file,) = folder.glob("*.json")
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


def in_object(segmentation: Any) -> Callable[[Path], None]:
    """Replace an object's mask; an RLE without a size gets the image's."""

    def damage(content: Any) -> None:
        changed = content["annotations"][0]
        (size,) = ([i["height"], i["width"]] for i in content["images"] if i["id"] == changed["image_id"])
        sized = isinstance(segmentation, dict) and {"size": size, **segmentation}
        changed["segmentation"] = sized or segmentation

    return in_json(damage)


def file_of(folder: Path, place: str) -> Path:
    return sorted((folder / place).iterdir())[2]


def cut(place: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = file_of(folder, place).read_bytes()
        file_of(folder, place).write_bytes(content[: len(content) // 2])

    return damage


def redrawn(place: str, change: Callable[[Image.Image], Any]) -> Callable[[Path], None]:
    """Replace a picture by an image or array."""

    def damage(folder: Path) -> None:
        with Image.open(file_of(folder, place)) as picture:
            changed = change(picture)
        changed = changed if isinstance(changed, Image.Image) else Image.fromarray(changed.astype(np.uint8))
        changed.save(file_of(folder, place))

    return damage


def turned_by_exif(folder: Path) -> None:
    with Image.open(file_of(folder, "images")) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(file_of(folder, "images"), exif=exif)


def copied_image(folder: Path) -> None:
    for place in ("images", "labels"):
        first, second = sorted((folder / place).iterdir())[:2]
        shutil.copyfile(first, second)


def without_largest(picture: Image.Image) -> np.ndarray:
    ids = rgb2id(np.array(picture))
    values, counts = np.unique(ids[ids > 0], return_counts=True)
    return id2rgb(np.where(ids == values[counts.argmax()], 0, ids))


def with_another(picture: Image.Image) -> Image.Image:
    picture.paste((1, 2, 3), (0, 0, 40, 40))
    return picture


DAMAGES = [
    ("panoptic", lambda f: file_of(f, "images").unlink(), "file missing"),
    ("panoptic", lambda f: file_of(f, "pngs").unlink(), "file missing"),
    ("instance", cut("images"), "file unreadable"),
    ("panoptic", cut("pngs"), "file unreadable"),
    ("semantic", redrawn("labels", lambda p: p.convert("RGB")), "file unreadable"),
    ("ids", cut("masks"), "cannot be loaded"),
    ("panoptic", redrawn("images", lambda p: p.resize((99, 77))), "size"),
    ("ids", redrawn("images", lambda p: p.resize((99, 77))), "size"),
    ("panoptic", turned_by_exif, "size"),
    ("panoptic", redrawn("pngs", lambda p: p.resize((99, 77), 0)), "size"),
    ("semantic", redrawn("labels", lambda p: p.resize((99, 77), 0)), "size"),
    ("panoptic", in_json(lambda c: c["images"][1].update(height=9)), "size"),
    ("ids", lambda f: file_of(f, "masks").unlink(), "image without annotation"),
    ("semantic", lambda f: file_of(f, "images").unlink(), "annotation without image"),
    ("semantic", copied_image, "duplicate image"),
    ("semantic", redrawn("labels", lambda p: np.where(np.array(p) == 3, 255, p)), "unknown label"),
    ("panoptic", lambda f: (f / "panoptic.json").write_text('{"images": ['), "json unreadable"),
    ("instance", in_json(lambda c: c["annotations"][1].pop("category_id")), "wrong entry"),
    ("instance", in_json(lambda c: c["annotations"].clear()), "nothing annotated"),
    ("instance", in_object([[9000, 10, 9050, 10, 9050, 60]]), "empty mask"),
    ("instance", in_object([[1, 1, 1, 1, 1, 1]]), "empty mask"),
    ("instance", in_object({"size": [50, 50], "counts": [2500]}), "mask broken"),
    ("instance", in_object({"counts": [5, 6, 7]}), "mask broken"),
    ("instance", in_object({"counts": "not run lengths"}), "mask broken"),
    ("instance", in_object([[10, 10, 10**9, 10, 10, 60]]), "mask broken"),
    ("panoptic", redrawn("pngs", without_largest), "empty mask"),
    ("panoptic", redrawn("pngs", with_another), "unknown segment"),
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
    assert not kinds(first, FATAL) and kinds(first, WARNING) <= {"class without example"}  # so few images lack some
    assert not kinds(second, FATAL, WARNING)
    assert len(first.images) == first.total == IMAGES and all(image.classes for image in first.images)


@pytest.mark.parametrize("root", ["coco_panoptic", "coco_instance"])
def test_registered_data_have_no_faults(data_dir: Path, root: str) -> None:
    """What is odd in them is listed as such: images without objects, classes without an example."""
    register_all_coco(str(data_dir / root))
    suffix = "_panoptic" if root == "coco_panoptic" else ""
    for inspection in inspect_datasets([f"coco_2017_train{suffix}"], [f"coco_2017_val{suffix}"], progress=False):
        empty = {"image without objects"} if root == "coco_instance" and "val" in inspection.name else set()
        missing = "class not tested" if "val" in inspection.name else "class without example"
        assert kinds(inspection, FATAL, WARNING, NOTE) == {missing, *empty}


@pytest.mark.parametrize(("kind", "damage", "found"), DAMAGES)
def test_damage_is_found(data_dir: Path, tmp_path: Path, kind: str, damage: Callable, found: str) -> None:
    folder = copy_of(data_dir, kind, tmp_path / "data")
    damage(folder)
    (inspection,) = inspected(folder)
    findings = [f for f in inspection.findings if f.kind == found]
    assert findings
    assert str(folder) in findings[0].file or str(folder) in findings[0].what or found == "nothing annotated"
    cfg = config("data", "instance" if kind == "ids" else kind)
    if KINDS[found][0] == FATAL:
        with pytest.raises(UserError) as error:
            check_datasets(cfg)
        assert findings[0].what in str(error.value)
    else:
        assert not inspection.fatal
        check_datasets(cfg)


# Masks of 0 and 255, and classes that no image shows


def masks_of_255(folder: Path, images: int = 3, share: float = 0.1) -> Path:
    """Images with a bright part, and masks that are 255 there and 0 elsewhere."""
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True)
    for k in range(images):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : round(64 * share)] = 255
        pixels = np.random.default_rng(k).integers(0, 100, (64, 64, 3), np.uint8)
        Image.fromarray(pixels + (mask > 0)[..., None] * np.uint8(120)).save(folder / "images" / f"{k}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return folder


MASKS = {"form": "semantic", "images": "images", "annotations": "masks"}


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ({"classes": {0: "background", 255: "foreground"}}, set()),
        ({"classes": ["background", "foreground"]}, {"class without example", "undeclared void"}),
        ({"classes": ["background", "foreground"], "void": 255}, {"class without example"}),
        ({}, {"undeclared void"}),
        ({"void": 255}, set()),
    ],
)
def test_masks_of_255(tmp_path: Path, declared: dict[str, Any], found: set[str]) -> None:
    register_declarations({"masks": {**MASKS, **declared}}, masks_of_255(tmp_path))
    (inspection,) = inspect_datasets(["masks"], progress=False, workers=1)
    assert kinds(inspection, FATAL, WARNING) == found
    warnings = check_datasets(config("masks", "semantic"))
    assert {kind for kind in KINDS if any(f"masks: {kind} " in warning for warning in warnings)} == found


def test_a_rim_of_255_is_void(tmp_path: Path) -> None:
    masks_of_255(tmp_path, images=1, share=0.02)
    (file,) = (tmp_path / "masks").iterdir()
    labels = np.array(Image.open(file))
    labels[2:40, 2:40] = 1
    labels[labels == 255] = 0
    labels[0, :30] = 255  # less than a hundredth
    Image.fromarray(labels).save(file)
    register_declarations({"masks": {**MASKS, "classes": ["background", "foreground"]}}, tmp_path)
    assert not check_datasets(config("masks", "semantic"))


@pytest.mark.parametrize(("classes", "warned"), [(2, True), (3, False)])
def test_a_sample_says_little_of_many_classes(tmp_path: Path, classes: int, warned: bool) -> None:
    """Of 21 images 20 are checked: enough to miss one of 2 classes, but not of 3."""
    names = [str(k) for k in range(classes)]
    register_declarations({"masks": {**MASKS, "classes": names, "void": 255}}, masks_of_255(tmp_path, images=21))
    (inspection,) = inspect_datasets(["masks"], limit=20, progress=False, workers=1)
    assert ("class without example" in kinds(inspection, WARNING)) == warned
    (inspection,) = inspect_datasets(["masks"], progress=False, workers=1)
    assert "class without example" in kinds(inspection, WARNING)


def test_a_run_repeats_the_warnings_in_its_log(tmp_path: Path) -> None:
    register_declarations({"masks": {**MASKS, "classes": ["a", "b"]}}, masks_of_255(tmp_path, images=2))
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("masks",)
    cfg.INPUT.TASK, cfg.TEST.TASKS, cfg.OUTPUT_DIR = "semantic", ("semantic",), str(tmp_path / "out")
    cfg.SOLVER.MAX_ITER = 2
    with own_loggers():
        run(cfg)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "class without example" in log and "undeclared void" in log
    assert 'masks: all annotated pixels are "a"' in log, "the metrics are of one class"


# Ids with soft edges


def ids_of(folder: Path, drawn: Image.Image) -> Path:
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True)
    drawn.convert("RGB").save(folder / "images" / "a.jpg")
    drawn.save(folder / "masks" / "a.png")
    return folder


def two_discs() -> Image.Image:
    drawn = Image.new("L", (256, 256))
    painter = ImageDraw.Draw(drawn)
    painter.ellipse((20, 20, 110, 110), fill=40)
    painter.ellipse((120, 120, 240, 240), fill=90)
    return drawn


def small_objects(side: int, gap: int) -> Image.Image:
    """As many squares as fit, each with its own id."""
    ids = np.zeros((64, 64), np.uint16)
    places = range(0, 64 - side, side + gap)
    for k, (y, x) in enumerate(((y, x) for y in places for x in places), start=1):
        ids[y : y + side, x : x + side] = k
    return Image.fromarray(ids)


@pytest.mark.parametrize(
    ("drawn", "warned"),
    [
        (two_discs().resize((128, 128), Image.Resampling.BILINEAR), True),
        (two_discs().resize((512, 512), Image.Resampling.BICUBIC), True),
        (two_discs().resize((128, 128), Image.Resampling.NEAREST), False),
        (small_objects(side=1, gap=1), False),
        (small_objects(side=2, gap=1), False),
        (small_objects(side=3, gap=0), False),
        (small_objects(side=8, gap=0), False),
    ],
    ids=["smaller", "larger", "nearest", "dots", "2 x 2, apart", "3 x 3, in touch", "8 x 8, in touch"],
)
def test_ids_with_soft_edges(tmp_path: Path, drawn: Image.Image, warned: bool) -> None:
    register_declarations({"ids": {**MASKS, "form": "instance_ids"}}, ids_of(tmp_path, drawn))
    (inspection,) = inspect_datasets(["ids"], queries=10_000, progress=False, workers=1)
    found = [f for f in inspection.findings if f.kind == "soft edges"]
    assert [Path(f.file).name for f in found] == (["a.png"] if warned else [])
    assert not warned or "2 objects" in found[0].what


# Between two sets, and with the model


def test_images_that_are_trained_on_and_tested(data_dir: Path, tmp_path: Path) -> None:
    train, test = copy_of(data_dir, "semantic", tmp_path / "a"), copy_of(data_dir, "semantic", tmp_path / "b", part=1)
    shutil.copyfile(file_of(train, "images"), file_of(test, "images"))
    _, inspection = inspected(train, test)
    (finding,) = [f for f in inspection.findings if f.kind == "image in training and test"]
    assert finding.file == str(file_of(test, "images")) and str(file_of(train, "images")) in finding.what


def test_other_class_names(data_dir: Path, tmp_path: Path) -> None:
    train, test = copy_of(data_dir, "semantic", tmp_path / "a"), copy_of(data_dir, "semantic", tmp_path / "b", part=1)
    declared = declaration(test)
    register_declarations({"a": declaration(train)}, train)
    register_declarations({"same": declared}, test)
    check_datasets(config("a", "semantic", ("same",)))
    register_declarations({"b": {**declared, "classes": ["building", "sky", *declared["classes"][2:]]}}, test)
    with pytest.raises(UserError, match='class 0 is "sky" in a and "building"'):
        check_datasets(config("a", "semantic", ("b",)))


def test_more_objects_than_queries(data_dir: Path, tmp_path: Path) -> None:
    (inspection,) = inspected(copy_of(data_dir, "instance", tmp_path / "a"), queries=10)
    crowded = [f for f in inspection.findings if f.kind == "more objects than queries"]
    assert len(crowded) == sum(len(image.classes) > 10 for image in inspection.images) > 0
    cfg = config("a", "instance")
    cfg.MODEL.MASK_DECODER.NUM_QUERIES = 10
    assert any("NUM_QUERIES" in warning for warning in check_datasets(cfg))
    cfg.TEST.TILE = 64  # none of which may have more
    assert not any("NUM_QUERIES" in warning for warning in check_datasets(cfg))


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


def test_the_instances_of_a_panoptic_set_are_read_only_for_mask_ap(data_dir: Path, tmp_path: Path) -> None:
    """At COCO's size, they are half a gigabyte."""
    folder, instances = copy_of(data_dir, "panoptic", tmp_path / "a"), tmp_path / "instances.json"
    instances.write_text("broken")
    register_declarations({"a": {**declaration(folder), "instances": str(instances)}}, folder)
    check_datasets(config("a", "panoptic"))
    assert inspect_datasets(["a"], limit=2, progress=False)[0].fatal  # as tools/check_dataset.py does
    cfg = config("a", "panoptic", ("a",))
    cfg.TEST.TASKS = ("panoptic", "semantic")
    check_datasets(cfg)
    cfg.TEST.TASKS = ("panoptic", "instance")
    with pytest.raises(UserError, match=r"instances\.json"):
        check_datasets(cfg)
