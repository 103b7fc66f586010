"""Damages of many kinds, applied to copies of real data: each is found and named, and the fatal ones stop a training.

The undamaged copies have no faults.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k, register_all_coco
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as rle

from dformer.apps.data_report import text_report, write_html
from dformer.d2.config import get_cfg
from dformer.d2.data import check_datasets, register_file
from dformer.d2.data.inspection import inspect_datasets
from dformer.data.checks.faults import FATAL, NOTE, WARNING, Finding
from dformer.data.checks.inspection import Inspection
from dformer.utils.errors import UserError
from tests import load_script
from tests.d2.tiny import own_loggers

check_dataset = load_script("tools/check_dataset.py").main
train_net = load_script("tools/train_net.py").main

IMAGES = 6  # of each data set
DECLARATIONS = {
    "panoptic": {"form": "coco_panoptic", "annotations": "panoptic.json", "pngs": "pngs"},
    "instance": {"form": "coco_instances", "annotations": "instances.json"},
    "semantic": {
        "form": "semantic",
        "annotations": "labels",
        "classes": ["sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "person", "bicycle"],
        "void": 11,
    },
    "ids": {"form": "instance_ids", "annotations": "masks"},
}


@pytest.fixture(autouse=True)
def empty_catalogs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names are free."""
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
    with own_loggers():
        yield


def copy_files(source: Path, target: Path, names: list[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


def copy_of(data: Path, kind: str, folder: Path, part: int = 0) -> Path:
    """A small real data set that may be damaged: images, annotations, and dataset.yaml; other `part`s, other images."""
    if kind in ("panoptic", "instance"):
        coco = data / f"coco_{kind}" / "coco"
        source = coco / "annotations" / f"{'panoptic' if kind == 'panoptic' else 'instances'}_val2017.json"
        content = json.loads(source.read_text())
        if kind == "instance":  # images with objects, some of them crowds
            content["images"].sort(key=lambda i: -sum(a["image_id"] == i["id"] for a in content["annotations"]))
        content["images"] = content["images"][part * IMAGES : (part + 1) * IMAGES]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        copy_files(coco / "val2017", folder / "images", [i["file_name"] for i in content["images"]])
        if kind == "panoptic":
            copy_files(coco / "panoptic_val2017", folder / "pngs", [a["file_name"] for a in content["annotations"]])
        (folder / DECLARATIONS[kind]["annotations"]).write_text(json.dumps(content))
    else:
        places = {"semantic": ("camvid/val", "camvid/valannot"), "ids": ("pennfudan/images", "pennfudan/masks")}[kind]
        names = sorted(f.stem for f in (data / places[1]).iterdir())[40 + part * IMAGES : 40 + (part + 1) * IMAGES]
        copy_files(data / places[0], folder / "images", [f"{name}.jpg" for name in names])
        annotations = folder / DECLARATIONS[kind]["annotations"]
        copy_files(data / places[1], annotations, [f"{name}.png" for name in names])
    write_declaration(folder, f"{kind}_{part}", {**DECLARATIONS[kind], "images": "images"})
    return folder


def write_declaration(folder: Path, name: str, declaration: dict[str, Any]) -> None:
    (folder / "dataset.yaml").write_text(yaml.safe_dump({name: declaration}))


# Damages. Each takes the folder of a copy.


@contextmanager
def edited(folder: Path) -> Iterator[Any]:
    """The content of the folder's json, which is written back."""
    (file,) = folder.glob("*.json")
    content = json.loads(file.read_text())
    yield content
    file.write_text(json.dumps(content))


def in_json(edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with edited(folder) as content:
            edit(content)

    return damage


def file_of(folder: Path, place: str) -> Path:
    return sorted((folder / place).iterdir())[2]


def removed(place: str) -> Callable[[Path], None]:
    return lambda folder: file_of(folder, place).unlink()


def truncated(place: str, share: float = 0.5) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = file_of(folder, place)
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])

    return damage


def redrawn(place: str, change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = file_of(folder, place)
        with Image.open(file) as picture:
            picture.load()
        change(picture).save(file, **options)

    return damage


def pixels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: Image.fromarray(change(np.array(picture)))


def turned_by_exif(folder: Path) -> None:
    file = file_of(folder, "images")
    with Image.open(file) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(file, exif=exif)


def a_copy(folder: Path) -> None:
    """The same picture under another name."""
    first, second = sorted((folder / "images").iterdir())[:2]
    if (folder / "labels").exists():
        shutil.copyfile(folder / "labels" / f"{first.stem}.png", folder / "labels" / f"{second.stem}.png")
    shutil.copyfile(first, second)


def without_image(folder: Path) -> None:
    (annotation,) = [f for f in folder.glob("*/*.png") if f.stem == file_of(folder, "images").stem]
    shutil.copyfile(annotation, annotation.with_stem("nobody"))


def binary(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(file)) > 0
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)


def first_object(content: Any) -> dict[str, Any]:
    return max((a for a in content["annotations"] if isinstance(a["segmentation"], list)), key=lambda a: a["area"])


def segments(content: Any) -> list[dict[str, Any]]:
    return content["annotations"][0]["segments_info"]


def set_rle(content: Any, counts: Any, size: list[int] | None = None) -> None:
    annotation = first_object(content)
    (image,) = [i for i in content["images"] if i["id"] == annotation["image_id"]]
    size = size or [image["height"], image["width"]]
    mask = rle.encode(np.zeros(size, np.uint8, order="F"))
    annotation["segmentation"] = {"size": size, "counts": counts or mask["counts"].decode()}


def recoloured(old: int, new: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda labels: np.where(labels == old, new, labels).astype(np.uint8)


def without_largest(picture: np.ndarray) -> np.ndarray:
    ids = rgb2id(picture)
    values, counts = np.unique(ids[ids > 0], return_counts=True)
    ids[ids == values[counts.argmax()]] = 0
    return id2rgb(ids)


def with_another(picture: np.ndarray) -> np.ndarray:
    picture[:40, :40] = (1, 2, 3)
    return picture


class Damage(NamedTuple):
    """A damage to data of a kind, and what is to be found."""

    kind: str
    apply: Callable[[Path], Any]
    level: str
    found: str


DAMAGES = {
    # files
    "image removed": Damage("panoptic", removed("images"), FATAL, "image missing"),
    "image removed, instances": Damage("instance", removed("images"), FATAL, "image missing"),
    "image truncated": Damage("instance", truncated("images"), FATAL, "image unreadable"),
    "image empty": Damage("semantic", truncated("images", 0), FATAL, "image unreadable"),
    "image resized": Damage("panoptic", redrawn("images", lambda p: p.resize((99, 77))), FATAL, "image size"),
    "image resized, instances": Damage(
        "instance", redrawn("images", lambda p: p.resize((99, 77))), FATAL, "image size"
    ),
    "image resized, ids": Damage("ids", redrawn("images", lambda p: p.resize((99, 77))), FATAL, "image size"),
    "image turned by EXIF": Damage("panoptic", turned_by_exif, FATAL, "image size"),
    "image twice": Damage("semantic", a_copy, WARNING, "duplicate image"),
    "image without mask": Damage("ids", removed("masks"), WARNING, "image without annotation"),
    "image without labels": Damage("semantic", removed("labels"), WARNING, "image without annotation"),
    "mask without image": Damage("ids", without_image, WARNING, "annotation without image"),
    "PNG removed": Damage("panoptic", removed("pngs"), FATAL, "annotation missing"),
    "PNG truncated": Damage("panoptic", truncated("pngs"), FATAL, "annotation unreadable"),
    "PNG grey": Damage("panoptic", redrawn("pngs", lambda p: p.convert("L")), FATAL, "annotation unreadable"),
    "PNG resized": Damage("panoptic", redrawn("pngs", lambda p: p.resize((99, 77), 0)), FATAL, "annotation size"),
    "labels truncated": Damage("semantic", truncated("labels"), FATAL, "annotation unreadable"),
    "labels in colour": Damage(
        "semantic", redrawn("labels", lambda p: p.convert("RGB")), FATAL, "annotation unreadable"
    ),
    "labels resized": Damage("semantic", redrawn("labels", lambda p: p.resize((99, 77), 0)), FATAL, "annotation size"),
    "mask truncated": Damage("ids", truncated("masks"), FATAL, "cannot be loaded"),
    # labels
    "labels with 255": Damage("semantic", redrawn("labels", pixels(recoloured(3, 255))), FATAL, "label without class"),
    "labels all void": Damage("semantic", redrawn("labels", pixels(lambda p: p * 0 + 11)), WARNING, "all void"),
    "masks binary": Damage("ids", binary, WARNING, "binary masks"),
    # json as a whole
    "json cut": Damage(
        "panoptic", lambda f: (f / "panoptic.json").write_text('{"images": ['), FATAL, "json unreadable"
    ),
    "no categories": Damage("instance", in_json(lambda c: c.pop("categories")), FATAL, "json incomplete"),
    "no images": Damage("panoptic", in_json(lambda c: c["images"].clear()), FATAL, "json incomplete"),
    "no category id": Damage(
        "instance", in_json(lambda c: c["annotations"][1].pop("category_id")), FATAL, "field missing"
    ),
    "no isthing": Damage("panoptic", in_json(lambda c: c["categories"][1].pop("isthing")), FATAL, "field missing"),
    "no segment id": Damage("panoptic", in_json(lambda c: segments(c)[0].pop("id")), FATAL, "field missing"),
    "size wrong": Damage("panoptic", in_json(lambda c: c["images"][1].update(height=9)), FATAL, "image size"),
    # ids
    "image id twice": Damage(
        "instance", in_json(lambda c: c["images"][1].update(id=c["images"][0]["id"])), FATAL, "duplicate image id"
    ),
    "file twice": Damage(
        "instance",
        in_json(lambda c: c["images"].append({**c["images"][0], "id": 10**9})),
        WARNING,
        "duplicate file name",
    ),
    "annotation id twice": Damage(
        "instance",
        in_json(lambda c: c["annotations"][1].update(id=c["annotations"][0]["id"])),
        FATAL,
        "duplicate annotation id",
    ),
    "category id twice": Damage(
        "panoptic", in_json(lambda c: c["categories"][1].update(id=1)), FATAL, "duplicate category id"
    ),
    "category name twice": Damage(
        "instance", in_json(lambda c: c["categories"][1].update(name="person")), WARNING, "duplicate category name"
    ),
    "annotated twice": Damage(
        "panoptic", in_json(lambda c: c["annotations"].append(c["annotations"][0])), FATAL, "image annotated twice"
    ),
    "segment id twice": Damage(
        "panoptic", in_json(lambda c: segments(c)[1].update(id=segments(c)[0]["id"])), FATAL, "duplicate segment id"
    ),
    "segment id 0": Damage(
        "panoptic", in_json(lambda c: segments(c)[0].update(id=0)), FATAL, "segment id out of range"
    ),
    "category unknown": Damage(
        "instance", in_json(lambda c: c["annotations"][0].update(category_id=999)), FATAL, "unknown category"
    ),
    "category of a segment unknown": Damage(
        "panoptic", in_json(lambda c: segments(c)[0].update(category_id=999)), FATAL, "unknown category"
    ),
    "image unknown": Damage(
        "instance", in_json(lambda c: c["annotations"][0].update(image_id=-5)), WARNING, "annotation without image"
    ),
    "image ids as strings": Damage(
        "instance",
        in_json(lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]]),
        FATAL,
        "annotation without image",
    ),
    "image not annotated": Damage(
        "panoptic", in_json(lambda c: c["annotations"].pop()), WARNING, "image without annotation"
    ),
    "crowd flag": Damage("instance", in_json(lambda c: c["annotations"][0].update(iscrowd=2)), WARNING, "crowd flag"),
    # masks
    "mask missing": Damage("instance", in_json(lambda c: first_object(c).pop("segmentation")), FATAL, "mask missing"),
    "polygon short": Damage(
        "instance", in_json(lambda c: first_object(c).update(segmentation=[[1, 1, 5, 5]])), WARNING, "polygon too short"
    ),
    "polygon NaN": Damage(
        "instance",
        in_json(lambda c: first_object(c)["segmentation"][0].__setitem__(0, float("nan"))),
        FATAL,
        "polygon not finite",
    ),
    "polygon outside": Damage(
        "instance",
        in_json(lambda c: first_object(c).update(segmentation=[[9000, 10, 9050, 10, 9050, 60, 9000, 60]])),
        WARNING,
        "mask outside the image",
    ),
    "coordinates of a larger image": Damage(
        "instance",
        in_json(lambda c: first_object(c).update(segmentation=[[4 * v for v in first_object(c)["segmentation"][0]]])),
        WARNING,
        "mask outside the image",
    ),
    "mask empty": Damage("instance", in_json(lambda c: set_rle(c, None)), WARNING, "empty mask"),
    "mask of another size": Damage("instance", in_json(lambda c: set_rle(c, None, [50, 50])), FATAL, "mask size"),
    "RLE too short": Damage("instance", in_json(lambda c: set_rle(c, [5, 6, 7])), FATAL, "mask broken"),
    "RLE not RLE": Damage("instance", in_json(lambda c: set_rle(c, "not run lengths")), FATAL, "mask broken"),
    "RLE without size": Damage(
        "instance", in_json(lambda c: first_object(c).update(segmentation={"counts": "11"})), FATAL, "mask broken"
    ),
    "box of three": Damage(
        "instance", in_json(lambda c: first_object(c).update(bbox=[1, 2, 3])), FATAL, "value of a wrong type"
    ),
    "area wrong": Damage("instance", in_json(lambda c: first_object(c).update(area=1.0)), WARNING, "area"),
    "box as corners": Damage(
        "instance", in_json(lambda c: first_object(c).update(bbox=[200, 200, 20, 20])), WARNING, "box"
    ),
    "area of a segment wrong": Damage(
        "panoptic", in_json(lambda c: segments(c)[0].update(area=10**7)), WARNING, "area"
    ),
    "box of a segment wrong": Damage(
        "panoptic", in_json(lambda c: segments(c)[0].update(bbox=[0, 0, 1, 1])), WARNING, "box"
    ),
    "segment not drawn": Damage("panoptic", redrawn("pngs", pixels(without_largest)), WARNING, "empty segment"),
    "segment not listed": Damage("panoptic", redrawn("pngs", pixels(with_another)), WARNING, "segment not in the json"),
}


def inspected(folder: Path, *others: Path, queries: int = 100) -> list[Inspection]:
    first, *rest = [name for f in (folder, *others) for name in register_file(f / "dataset.yaml")]
    return inspect_datasets([first], rest, queries, progress=False, workers=1)


def kinds(inspection: Inspection, *levels: str) -> set[str]:
    return {f.kind for f in inspection.findings if f.level in levels}


@pytest.mark.parametrize("kind", DECLARATIONS)
def test_undamaged_data_have_no_faults(data_dir: Path, tmp_path: Path, kind: str) -> None:
    folder = copy_of(data_dir, kind, tmp_path / "a")
    first, second = inspected(folder, copy_of(data_dir, kind, tmp_path / "b", part=1))
    assert not kinds(first, FATAL, WARNING) and not kinds(second, FATAL, WARNING)
    assert len(first.seen) == first.total == IMAGES and all(image.objects for image in first.seen)


@pytest.mark.parametrize("root", ["coco_panoptic", "coco_instance", "ade20k"])
def test_the_real_data_have_no_faults(data_dir: Path, tmp_path: Path, root: str) -> None:
    """What is odd in them is listed as such: images without objects, classes without an example."""
    if root == "ade20k":
        from tests.datasets import load_script

        ade20k = tmp_path / "ADEChallengeData2016"
        ade20k.mkdir()
        for name in ("images", "annotations"):
            (ade20k / name).symlink_to(data_dir / "ade20k" / "ADEChallengeData2016" / name)
        load_script("prepare_ade20k_sem_seg").prepare(tmp_path, progress=False)
        register_all_ade20k(str(tmp_path))
        names = ["ade20k_sem_seg_train", "ade20k_sem_seg_val"]
    else:
        register_all_coco(str(data_dir / root))
        suffix = "_panoptic" if root == "coco_panoptic" else ""
        names = [f"coco_2017_train{suffix}", f"coco_2017_val{suffix}"]
    for inspection in inspect_datasets(names[:1], names[1:], progress=False):
        assert not kinds(inspection, FATAL, WARNING)
        assert "class without example" in kinds(inspection, NOTE)
        without = [f for f in inspection.findings if f.kind == "image without objects"]
        assert bool(without) == (root == "coco_instance" and "val" in inspection.name)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(
    data_dir: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kind, apply, level, found = DAMAGES[name]
    folder = copy_of(data_dir, kind, tmp_path / "data")
    apply(folder)
    (inspection,) = inspected(folder)
    of_kind = [f for f in inspection.findings if f.kind == found]
    assert of_kind and {f.level for f in of_kind} == {level}, inspection.findings
    assert all(f.remedy and f.what and f.file for f in of_kind)
    assert str(folder) in of_kind[0].file or str(folder) in of_kind[0].what
    assert bool(inspection.fatal) == (level == FATAL)
    write_html([inspection], tmp_path / "page.html", workers=1)
    assert found in (tmp_path / "page.html").read_text() and found in text_report([inspection])

    task = "instance" if kind == "ids" else kind
    options = ["DATASETS.CUSTOM", str([str(folder / "dataset.yaml")]), "DATASETS.TRAIN", f"('{inspection.name}',)"]
    options += ["DATASETS.TEST", "()", "INPUT.TASK", task, "OUTPUT_DIR", str(tmp_path / "output")]
    if level == FATAL:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *options])
        with pytest.raises(SystemExit) as end:
            train_net()
        assert end.value.code == 2 and of_kind[0].what[:40] in capsys.readouterr().err
        assert not (tmp_path / "output").exists(), "training began"
    else:
        cfg = get_cfg()
        cfg.merge_from_list(options)
        check_datasets(cfg)


def test_there_are_many_kinds_of_damage() -> None:
    assert len(DAMAGES) >= 25 and len({damage.found for damage in DAMAGES.values()}) >= 25


# Between two sets, and with the model


def test_images_that_are_trained_on_and_tested(data_dir: Path, tmp_path: Path) -> None:
    train, test = copy_of(data_dir, "semantic", tmp_path / "a"), copy_of(data_dir, "semantic", tmp_path / "b", part=1)
    shutil.copyfile(file_of(train, "images"), file_of(test, "images"))
    _, inspection = inspected(train, test)
    (finding,) = [f for f in inspection.findings if f.kind == "image in training and test"]
    assert (finding.level, finding.file) == (WARNING, str(file_of(test, "images")))
    assert str(file_of(train, "images")) in finding.what


@pytest.mark.parametrize("classes", [["building", "sky"], ["sky"]])
def test_other_class_names(data_dir: Path, tmp_path: Path, classes: list[str]) -> None:
    train, test = copy_of(data_dir, "semantic", tmp_path / "a"), copy_of(data_dir, "semantic", tmp_path / "b", part=1)
    names = [*classes, *DECLARATIONS["semantic"]["classes"][len(classes) :]]
    write_declaration(test, "other", {**DECLARATIONS["semantic"], "images": "images", "classes": names})
    _, inspection = inspected(train, test)
    assert ("other classes" in kinds(inspection, FATAL)) == (classes[0] == "building")
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.INPUT.TASK = ("semantic_0",), ("other",), "semantic"
    if classes[0] == "building":
        with pytest.raises(UserError, match='class 0 is "sky" in semantic_0 and "building" here'):
            check_datasets(cfg)
    else:
        check_datasets(cfg)


def test_more_objects_than_queries(data_dir: Path, tmp_path: Path) -> None:
    (inspection,) = inspected(copy_of(data_dir, "instance", tmp_path / "a"), queries=10)
    crowded = [f for f in inspection.findings if f.kind == "more objects than queries"]
    assert {f.level for f in crowded} == {WARNING} and 0 < len(crowded) <= IMAGES
    assert "10 queries" in crowded[0].what and "NUM_QUERIES" in crowded[0].remedy


def test_nothing_annotated(data_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(data_dir, "instance", tmp_path / "a")
    in_json(lambda content: content["annotations"].clear())(folder)
    (inspection,) = inspected(folder)
    assert "nothing annotated" in kinds(inspection, FATAL)


def test_a_part_of_the_images(data_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(data_dir, "panoptic", tmp_path / "a")
    names = register_file(folder / "dataset.yaml")
    (inspection,) = inspect_datasets(names, limit=2, progress=False)
    assert (len(inspection.seen), inspection.total) == (2, IMAGES)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(names), ()
    removed("images")(folder)  # the third of six
    with pytest.raises(UserError, match="does not exist; put it there"):
        check_datasets(cfg)
    cfg.DATASETS.CHECK_IMAGES = 0
    check_datasets(cfg)


# The tool


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *arguments])
    with pytest.raises(SystemExit) as end:
        check_dataset()
    return int(end.value.code or 0)


def test_command_line(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = copy_of(data_dir, "ids", tmp_path / "a")
    page, listed = str(tmp_path / "page.html"), tmp_path / "found.json"
    declared = str(folder / "dataset.yaml")
    assert run_tool(monkeypatch, declared, "--html", page) == 0
    assert "Training can start: no fatal fault, 0 warnings." in capsys.readouterr().out
    html = Path(page).read_text()
    assert html.count("<figure>") == IMAGES and "src='http" not in html
    file_of(folder, "images").write_bytes(b"")
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    assert run_tool(monkeypatch, declared, "--html", page, "--json", str(listed)) == 1
    said = capsys.readouterr().out
    assert "FATAL: image unreadable (1)" in said and str(file_of(folder, "images")) in said
    (found,) = json.loads(listed.read_text())["ids_0"]
    assert (found["level"], found["kind"]) == ("fatal", "image unreadable")
    assert run_tool(monkeypatch, "pedestrian_train", "--html", page) == 2
    assert run_tool(monkeypatch, "--html", page) == 2


def test_page_is_bounded_and_escaped(data_dir: Path, tmp_path: Path) -> None:
    """With ten thousand findings and images the page has no more pictures than with a hundred."""
    (inspection,) = inspected(copy_of(data_dir, "ids", tmp_path / "<b>a"))
    write_html([inspection], tmp_path / "few.html")
    inspection.seen = inspection.seen * 2000
    inspection.findings = [Finding(WARNING, "odd <i>", image.file, "<script>") for image in inspection.seen[:10000]]
    write_html([inspection], tmp_path / "many.html")
    few, many = (tmp_path / "few.html").read_text(), (tmp_path / "many.html").read_text()
    assert many.count("<figure>") <= 24 + 4 and len(many) < len(few) + 3e6
    assert "<script>" not in many and "<b>a" not in many and "odd &lt;i&gt;" in many
    assert "9,950 more" in many
