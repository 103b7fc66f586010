"""Declared data sets: every form gives the masks and classes of its files; a wrong declaration is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin import register_all_coco
from PIL import Image
from pycocotools import mask as rle

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.data import (
    available_tasks,
    check_datasets,
    num_classes,
    register_custom,
    register_declarations,
    register_file,
    thing_ids,
)
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_size
from dformer.utils.errors import UserError
from tests.d2.evaluation.oracle import Segment, evaluate, instances_output, semantic_output

pytestmark = pytest.mark.usefixtures("empty_catalogs")


def declare(name: str, root: Path, **declaration: Any) -> list[dict[str, Any]]:
    """Records of a data set that is declared so."""
    register_declarations({name: declaration}, root)
    return DatasetCatalog.get(name)


def targets(name: str, record: dict[str, Any], task: str) -> list[tuple[int, bytes]]:
    """What an image's training targets are: class and mask of each, as comparable values."""
    size = read_size(record["file_name"])
    ignore_label = MetadataCatalog.get(name).get("ignore_label", 255)
    annotation = annotation_reader(task, num_classes(name, task), ignore_label)(record, size)
    classes, masks, _ = annotation.targets(T.TransformList([]), size)
    return [(cls, mask.numpy().tobytes()) for cls, mask in zip(classes, masks, strict=True)]


# Forms

COCO_INSTANCES = {"form": "coco_instances", "images": "val2017", "annotations": "annotations/instances_val2017.json"}


def test_pngs_of_instance_ids(data_dir: Path) -> None:
    records = declare("ped", data_dir / "pennfudan", form="instance_ids", images="images", annotations="masks")
    assert (len(records), available_tasks("ped")) == (120, ("instance",))
    assert (MetadataCatalog.get("ped").thing_classes, thing_ids("ped", "instance")) == (["object"], (0,))
    for record in records:
        ids = np.asarray(Image.open(data_dir / "pennfudan" / "masks" / f"{record['image_id']}.png"))
        assert targets("ped", record, "instance") == [(0, (ids == k).tobytes()) for k in np.unique(ids) if k]


def test_semantic_pngs_with_void_and_merged_classes(data_dir: Path) -> None:
    classes = {0: "sky", 1: "building", 2: "building", **{k: "rest" for k in range(3, 10)}}
    files = {"images": "train", "annotations": "trainannot"}
    records = declare("cam", data_dir / "camvid", form="semantic", **files, classes=classes, void=[10, 11])
    assert (len(records), available_tasks("cam"), num_classes("cam", "semantic")) == (367, ("semantic",), 3)
    for record in records[::40]:
        labels = np.asarray(Image.open(data_dir / "camvid" / "trainannot" / f"{record['image_id']}.png"))
        masks = [labels == 0, (labels == 1) | (labels == 2), (labels > 2) & (labels < 10)]
        expected = [(k, mask.tobytes()) for k, mask in enumerate(masks) if mask.any()]
        assert targets("cam", record, "semantic") == expected


def test_semantic_classes_come_from_the_labels_where_none_are_declared(data_dir: Path, tmp_path: Path) -> None:
    declare("cam", data_dir / "camvid", form="semantic", images="val", annotations="valannot", void=11)
    assert MetadataCatalog.get("cam").stuff_classes == [str(k) for k in range(11)]
    Image.new("RGB", (4, 1)).save(tmp_path / "a.jpg")
    Image.fromarray(np.array([[0, 1, 2, 200]], np.uint8)).save(tmp_path / "a.png")
    declaration = {"form": "semantic", "images": "*.jpg", "annotations": "*.png"}
    register_declarations({"gaps": declaration, "mended": {**declaration, "void": 200}}, tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}.* 200.* 3"):
        num_classes("gaps", "semantic")
    assert num_classes("mended", "semantic") == 3


def test_a_class_named_255_is_no_void(tmp_path: Path) -> None:
    Image.new("RGB", (4, 1)).save(tmp_path / "a.jpg")
    labels = np.array([[0, 0, 7, 255]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    declaration = {"form": "semantic", "images": "*.jpg", "annotations": "*.png"}
    named = {0: "background", 7: "background", 255: "foreground"}
    (record,) = declare("named", tmp_path, **declaration, classes=named)
    expected = [(0, (labels < 255).tobytes()), (1, (labels == 255).tobytes())]
    assert targets("named", record, "semantic") == expected
    (record,) = declare("void", tmp_path, **declaration, classes={0: "background", 255: "foreground"}, void=7)
    assert targets("void", record, "semantic") == [(0, (labels == 0).tobytes()), expected[1]]
    (record,) = declare("usual", tmp_path, **declaration, classes={0: "background", 7: "background"})
    assert targets("usual", record, "semantic") == expected[:1]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_coco_panoptic_is_what_detectron2_registers(data_dir: Path, task: str) -> None:
    root = data_dir / "coco_panoptic" / "coco"
    files = {"images": "val2017", "annotations": "annotations/panoptic_val2017.json", "pngs": "panoptic_val2017"}
    own = declare("own", root, form="coco_panoptic", **files)
    register_all_coco(str(data_dir / "coco_panoptic"))
    name = "coco_2017_val_panoptic"
    assert num_classes("own", task) == num_classes(name, task)
    assert thing_ids("own", task) == thing_ids(name, task)
    theirs = {r["image_id"]: r for r in DatasetCatalog.get(name)}
    assert {r["image_id"] for r in own} == theirs.keys()
    for record in own:
        assert targets("own", record, task) == targets(name, {**record, **theirs[record["image_id"]]}, task)


def test_coco_instances_are_what_detectron2_registers(data_dir: Path) -> None:
    root = data_dir / "coco_instance" / "coco"
    own = declare("own", root, **COCO_INSTANCES)
    register_all_coco(str(data_dir / "coco_instance"))
    name = "coco_2017_val"
    assert num_classes("own", "instance") == 80
    for mine, theirs in zip(own, DatasetCatalog.get(name), strict=True):
        assert mine["file_name"] == theirs["file_name"]
        assert targets("own", mine, "instance") == targets(name, theirs, "instance")


@pytest.mark.parametrize("form", ["labelme", "yolo_segment"])
def test_polygons_of_other_tools(data_dir: Path, tmp_path: Path, form: str) -> None:
    """COCO's polygons, written as these tools write them, give COCO's masks."""
    root = data_dir / "coco_instance" / "coco"
    records = declare("coco", root, **COCO_INSTANCES)
    names = MetadataCatalog.get("coco").thing_classes
    for record in records:
        polygons = [a for a in record["annotations"] if isinstance(a["segmentation"], list)]
        file, size = tmp_path / Path(record["file_name"]).stem, (record["width"], record["height"])
        if form == "labelme":
            shapes = [
                {"label": names[a["category_id"]], "points": np.reshape(p, (-1, 2)).tolist(), "group_id": k}
                for k, a in enumerate(polygons)
                for p in a["segmentation"]
            ]
            content = {"shapes": shapes, "imageWidth": size[0], "imageHeight": size[1]}
            file.with_suffix(".json").write_text(json.dumps(content))
        else:  # one polygon an object
            polygons = [a for a in polygons if len(a["segmentation"]) == 1]
            parts = [(a["category_id"], np.reshape(a["segmentation"], (-1, 2)) / size) for a in polygons]
            lines = [f"{cls} " + " ".join(f"{c:.17g}" for c in points.ravel()) for cls, points in parts]
            if lines:  # else an image without objects
                file.with_suffix(".txt").write_text("\n".join(lines))
        record["annotations"] = polygons
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": dict(enumerate(names))}))
    declared = {"images": root / "val2017", "annotations": tmp_path, "classes": "data.yaml"}
    own = {Path(r["file_name"]).stem: r for r in declare("own", tmp_path, form=form, **declared)}
    assert len(own) == len(records) and num_classes("own", "instance") == 80
    for record in records:
        mine = own[Path(record["file_name"]).stem]
        pairs = zip(targets("own", mine, "instance"), targets("coco", record, "instance"), strict=True)
        for (cls, mask), (expected_cls, expected) in pairs:
            # Parts of the width, as YOLO has them, round a corner now and then to the next pixel.
            differ = np.frombuffer(mask, bool) ^ np.frombuffer(expected, bool)
            assert cls == expected_cls and differ.sum() <= (4 if form == "yolo_segment" else 0)


def test_labelme_rectangles_and_names_from_the_files(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    shape = {"label": "cat", "points": [[2, 1], [8, 5]], "shape_type": "rectangle"}
    content = {"shapes": [{**shape, "label": "dog"}, shape], "imageHeight": 10, "imageWidth": 20}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (record,) = declare("own", tmp_path, form="labelme", images=".", annotations=".")
    assert MetadataCatalog.get("own").thing_classes == ["cat", "dog"]
    expected = np.zeros((10, 20), bool)
    expected[1:5, 2:8] = True
    assert targets("own", record, "instance") == [(1, expected.tobytes()), (0, expected.tobytes())]


def draw_objects(folder: Path, ids: np.ndarray) -> None:
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", ids.shape[::-1]).save(folder / "images" / f"{name}.png")


@pytest.mark.parametrize("classes", [None, ["cell", "debris"]])
def test_a_png_of_each_object(tmp_path: Path, classes: list[str] | None) -> None:
    ids = np.zeros((20, 30), np.uint8)
    ids[2:9, 3:8], ids[5:18, 20:29] = 1, 2
    draw_objects(tmp_path, ids)
    for value, name in ((1, "cell"), (2, "debris")):
        folder = tmp_path / "masks" / "a" / (name if classes else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ids == value) * np.uint8(255)).save(folder / f"{value}.png")
    more = {"classes": classes} if classes else {}
    first, second = declare("own", tmp_path, form="instance_masks", images="images", annotations="masks", **more)
    found = targets("own", first, "instance")
    assert found == [(0, (ids == 1).tobytes()), (int(bool(classes)), (ids == 2).tobytes())]
    assert targets("own", second, "instance") == []


def test_classes_of_ids_by_a_table(tmp_path: Path) -> None:
    ids = np.zeros((20, 30), np.uint8)
    ids[2:9, 3:8], ids[5:18, 20:29] = 3, 7
    draw_objects(tmp_path, ids)
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        Image.fromarray(ids).save(tmp_path / "masks" / f"{name}.png")
    rows = ["image,id,class", "a,3,nut", "a,7,bolt", "b,3,bolt"]
    (tmp_path / "objects.csv").write_text("\n".join([*rows, "b,7,bolt"]))
    form = {"form": "instance_ids", "images": "images", "annotations": "masks", "table": "objects.csv"}
    first, second = declare("own", tmp_path, **form)
    assert MetadataCatalog.get("own").thing_classes == ["bolt", "nut"]
    assert [[cls for cls, _ in targets("own", record, "instance")] for record in (first, second)] == [[1, 0], [0, 0]]
    (tmp_path / "objects.csv").write_text("\n".join(rows))
    with pytest.raises(UserError, match="object 7 of the image b"):
        declare("incomplete", tmp_path, **form)


def test_patterns_pair_names_with_endings(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}_image.jpg")
        Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "masks" / f"{name}_mask.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "c_image.jpg")  # without a mask: left out
    records = declare("own", tmp_path, form="instance_ids", images="*_image.jpg", annotations="masks/*_mask.png")
    assert [r["image_id"] for r in records] == ["a", "b"]
    assert targets("own", records[0], "instance") == [(0, np.ones((4, 4), bool).tobytes())]
    check_datasets(config({"own": {}}, "own", "instance", registered=True))


# Splits


def test_split(data_dir: Path) -> None:
    declaration = {"form": "instance_ids", "images": "images", "annotations": "masks", "split": {"val": 20, "seed": 1}}
    assert register_declarations({"ped": declaration}, data_dir / "pennfudan") == ["ped_train", "ped_val"]
    train, val = ({r["image_id"] for r in DatasetCatalog.get(f"ped_{part}")} for part in ("train", "val"))
    assert (len(train), len(val), train & val) == (100, 20, set())


# From a config


def config(declarations: Any, name: str, task: str, registered: bool = False) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = () if registered else (declarations,)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.INPUT.TASK = (name,), (), task
    return cfg


def test_declared_in_a_config_in_a_file_and_on_the_command_line(data_dir: Path, tmp_path: Path) -> None:
    root = data_dir / "camvid"
    declaration = {"form": "semantic", "images": str(root / "val"), "annotations": str(root / "valannot"), "void": 11}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"filed": declaration}))
    custom = [{"inline": declaration}, str(tmp_path / "sets.yaml")]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"VERSION": 2, "DATASETS": {"CUSTOM": custom}}))
    cfg = get_cfg()
    merge_config(cfg, str(tmp_path / "config.yaml"), [])
    assert register_custom(cfg) == ["inline", "filed"] == register_custom(cfg)
    again = get_cfg()
    (tmp_path / "as_run.yaml").write_text(cfg.dump())
    merge_config(again, str(tmp_path / "as_run.yaml"), ["DATASETS.CUSTOM", str([{"typed": declaration}])])
    assert register_custom(again) == ["typed"]
    assert num_classes("inline", "semantic") == num_classes("filed", "semantic") == num_classes("typed", "semantic")


def test_paths_are_relative_to_the_file_or_to_the_folder_of_all_data(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(data_dir / "pennfudan" / folder)
    declaration = {"form": "instance_ids", "images": "images", "annotations": "masks"}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"filed": declaration}))
    assert register_file(tmp_path / "sets.yaml") == ["filed"]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir / "pennfudan"))
    check_datasets(config({"inline": declaration}, "inline", "instance"))
    assert len(DatasetCatalog.get("filed")) == len(DatasetCatalog.get("inline")) == 120


def test_the_folder_of_all_data_is_written_out_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "masks").mkdir(parents=True)
    for file in ("data/a.jpg", "data/masks/a.png"):
        Image.new("L", (4, 4), 1).save(tmp_path / file)
    folders = {"images": "$DETECTRON2_DATASETS", "annotations": "$DETECTRON2_DATASETS/masks"}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"mine": {"form": "instance_ids", **folders}}))
    cfg = get_cfg()
    merge_config(cfg, None, ["DATASETS.CUSTOM", "['sets.yaml']"])
    assert register_custom(cfg) == ["mine"] and len(DatasetCatalog.get("mine")) == 1


FORM = {"form": "semantic", "images": "val", "annotations": "valannot"}


@pytest.mark.parametrize(
    ("declaration", "named"),
    [
        ({**FORM, "form": "semantics"}, '"semantics".*"semantic"'),
        ({**FORM, "viod": 11}, '"viod".*"void"'),
        ({**FORM, "form": "instance_ids", "void": 0}, '"void"'),
        ({"form": "semantic", "images": "val"}, '"annotations"'),
        ({**FORM, "form": "coco_panoptic"}, '"pngs"'),
        ({**FORM, "classes": ["sky", "building"], "void": 1}, "1 .*void"),
        ({**FORM, "void": "black"}, "void .*black"),
        ({**FORM, "classes": 11}, "classes"),
        ({**FORM, "classes": "nowhere.txt"}, r"nowhere\.txt"),
        ({**FORM, "split": 0.2}, "split"),
        ({**FORM, "split": {"val": 0.2, "fraction": 1}}, "split"),
        ({**FORM, "split": {"val": 0}}, "split"),
        ("semantic", "form"),
    ],
)
def test_a_wrong_declaration_is_refused(tmp_path: Path, declaration: Any, named: str) -> None:
    with pytest.raises(UserError, match=f"DATASETS.CUSTOM: mine: .*{named}"):
        register_declarations({"mine": declaration}, tmp_path)


@pytest.mark.parametrize(
    ("declaration", "named"),
    [
        ({**FORM, "images": "nowhere"}, "nowhere"),
        ({**FORM, "images": "*_x.png"}, "_x.png .*valannot"),
        ({**FORM, "form": "instance_ids", "classes": ["a", "b"]}, "valannot.* a, b"),
        ({**FORM, "form": "coco_instances", "annotations": "nowhere.json"}, "nowhere.json"),
        ({**FORM, "form": "yolo_segment", "classes": ["a"], "annotations": "val"}, "val"),
    ],
)
def test_missing_data_are_named(data_dir: Path, declaration: Any, named: str) -> None:
    register_declarations({"mine": declaration}, data_dir / "camvid")
    with pytest.raises(UserError, match=named):
        num_classes("mine", "semantic")


def test_a_label_that_is_not_declared_is_refused(data_dir: Path) -> None:
    records = declare("cam", data_dir / "camvid", **FORM, classes=[str(k) for k in range(11)])
    with pytest.raises(UserError, match="png .* 11,"):
        targets("cam", records[0], "semantic")


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    register_declarations({"mine": FORM}, tmp_path)
    assert register_declarations({"mine": FORM}, tmp_path) == ["mine"]
    with pytest.raises(UserError, match='"mine"'):
        register_declarations({"mine": {**FORM, "void": 0}}, tmp_path)


@pytest.mark.parametrize(
    ("form", "file", "content"),
    [
        ("labelme", "a.json", {"label": "cat", "shape_type": "circle"}),
        ("labelme", "a.json", {"label": "other", "shape_type": "rectangle"}),
        ("yolo_segment", "a.txt", "0 0.5 0.5"),
        ("yolo_segment", "a.txt", "1 0.1 0.1 0.2 0.1 0.2 0.2"),
    ],
)
def test_shapes_without_a_mask_are_refused(tmp_path: Path, form: str, file: str, content: Any) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    if form == "labelme":
        shapes = [{"points": [[2, 1], [8, 5]], **content}]
        content = json.dumps({"shapes": shapes, "imageHeight": 10, "imageWidth": 20})
    (tmp_path / file).write_text(content)
    register_declarations({"own": {"form": form, "images": ".", "annotations": ".", "classes": ["cat"]}}, tmp_path)
    with pytest.raises(UserError, match=file):
        num_classes("own", "instance")


# Evaluation: the annotations themselves get full marks


def test_evaluation_of_instance_ids(data_dir: Path, tmp_path: Path) -> None:
    records = declare("ped", data_dir / "pennfudan", form="instance_ids", images="images", annotations="masks")[:10]
    pairs = []
    for record in records:
        masks = [rle.decode(a["segmentation"]).astype(bool) for a in record["annotations"]]
        size = record["height"], record["width"]
        pairs.append((record, {"instances": instances_output([Segment(m, 0) for m in masks], size)}))
    assert evaluate("ped", pairs, tmp_path, ["instance"])["segm"]["AP"] == pytest.approx(100)


def test_evaluation_of_labels_that_are_mapped(data_dir: Path, tmp_path: Path) -> None:
    classes = {k: "low" if k < 5 else "high" for k in range(11)}
    records = declare("cam", data_dir / "camvid", **FORM, classes=classes, void=11)[:5]
    pairs = []
    for record in records:
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        segments = [Segment(labels < 5, 0, is_thing=False), Segment(labels >= 5, 1, is_thing=False)]
        pairs.append((record, {"sem_seg": semantic_output(segments, labels.shape, 2)}))  # void does not count
    results = evaluate("cam", pairs, tmp_path, ["semantic"])["sem_seg"]
    assert (results["mIoU"], results["pACC"]) == (100, 100)
