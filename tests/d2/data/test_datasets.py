"""Registration, the quick checks and the loaders."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin import register_all_coco
from detectron2.utils.env import seed_all_rng
from PIL import Image

from dformer.apps import shapes
from dformer.d2.config import get_cfg
from dformer.d2.data import (
    available_tasks,
    build_test_loader,
    build_train_loader,
    check_datasets,
    class_names,
    num_classes,
    register_shapes,
    thing_ids,
)
from dformer.d2.data.ade20k import register_ade20k
from dformer.data.panoptic import semantic_from_panoptic
from dformer.utils.errors import UserError
from dformer.utils.files import write_json

SHAPES = "test_data_sets_shapes"


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small Shapes, registered as SHAPES_train and SHAPES_val."""
    root = tmp_path_factory.mktemp("shapes")
    shapes.generate(root, shapes.Parameters(train=8, val=3, size=64), progress=False)
    register_shapes(root, SHAPES)
    return root


def config(train: str, test: str | None = None, task: str = "panoptic") -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (test,) if test else ()
    cfg.INPUT.TASK, cfg.INPUT.IMAGE_SIZE = task, 64
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    return cfg


def register_instances(data_dir: Path, name: str) -> Path:
    """Register COCO's images with instances as Detectron2's users register theirs; return the json file."""
    root = data_dir / "coco_instance" / "coco"
    json_file = root / "annotations" / "instances_val2017.json"
    register_coco_instances(name, {}, str(json_file), str(root / "val2017"))
    return json_file


# Names, classes, tasks.


@pytest.mark.usefixtures("empty_catalogs")
def test_ade20k_instances_are_numbered_by_thing(tmp_path: Path) -> None:
    """Category ids in the file are those of all 150 classes; whatever names the file has, the names are ours."""
    content = {
        "images": [{"id": "a", "file_name": "a.jpg", "height": 4, "width": 4}],
        "categories": [{"id": 7, "name": "bed"}, {"id": 8, "name": "windowpane"}, {"id": 149, "name": "flag"}],
        "annotations": [
            {"id": k, "image_id": "a", "category_id": category, "iscrowd": 0, "bbox": [0, 0, 2, 2], "area": 4}
            | {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
            for k, category in enumerate((7, 8, 149), start=1)
        ],
    }
    write_json(tmp_path / "ADEChallengeData2016" / "ade20k_instance_val.json", content)
    register_ade20k(tmp_path)
    (record,) = DatasetCatalog.get("ade20k_instance_val")
    names = class_names("ade20k_instance_val", "instance")
    assert [names[a["category_id"]] for a in record["annotations"]] == ["bed", "window", "flag"]


@pytest.mark.parametrize(
    ("name", "task", "classes", "things"),
    [
        ("shapes_train", "panoptic", 7, 4),
        ("ade20k_instance_val", "instance", 100, 100),
        ("shapes_train", "instance", 4, 4),
        ("shapes_train", "semantic", 7, 4),
        ("coco_2017_train_panoptic", "panoptic", 133, 80),
        ("coco_2017_train_panoptic", "instance", 80, 80),
        ("coco_2017_train_panoptic", "semantic", 133, 80),
        ("coco_2017_train", "instance", 80, 80),
        ("coco_2017_val_panoptic_separated", "semantic", 54, 0),
        ("ade20k_sem_seg_train", "semantic", 150, 0),
    ],
)
def test_classes_and_things(name: str, task: str, classes: int, things: int) -> None:
    assert task in available_tasks(name)
    assert num_classes(name, task) == classes
    assert thing_ids(name, task) == tuple(range(things))


def test_ade20k_things_lie_among_the_stuff() -> None:
    name, task = "ade20k_panoptic_val", "panoptic"
    classes = MetadataCatalog.get(name).stuff_classes
    things = [classes[index] for index in thing_ids(name, task)]
    assert (num_classes(name, task), len(things)) == (150, 100)
    assert {"bed", "person", "flag"} < set(things) and not {"wall", "sky", "lake"} & set(things)


def test_available_tasks() -> None:
    assert available_tasks("coco_2017_train_panoptic") == ("panoptic", "instance", "semantic")
    assert available_tasks("coco_2017_train") == ("instance",)
    assert available_tasks("coco_2017_train_panoptic_separated") == ("instance", "semantic")
    assert available_tasks("ade20k_sem_seg_val") == ("semantic",)


def test_shapes_metadata_and_records(shapes_root: Path) -> None:
    metadata = MetadataCatalog.get(f"{SHAPES}_val")
    assert (metadata.evaluator_type, metadata.ignore_label) == ("coco_panoptic_seg", 255)
    content = json.loads(Path(metadata.panoptic_json).read_text())
    assert metadata.stuff_classes == [c["name"] for c in content["categories"]]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 5: 3}
    assert metadata.stuff_dataset_id_to_contiguous_id == {10: 4, 12: 5, 13: 6}
    for annotation, record in zip(content["annotations"], DatasetCatalog.get(f"{SHAPES}_val"), strict=True):
        ids = np.asarray(Image.open(record["pan_seg_file_name"]))
        semantic = np.asarray(Image.open(Path(metadata.sem_seg_root) / annotation["file_name"]))
        np.testing.assert_array_equal(semantic_from_panoptic(ids, annotation["segments_info"], metadata), semantic)


def test_classes_of_a_set_that_is_registered_without_metadata(data_dir: Path) -> None:
    register_instances(data_dir, "test_data_sets_bare")
    assert num_classes("test_data_sets_bare", "instance") == 80
    register_coco_instances("test_data_sets_gone", {}, "gone.json", str(data_dir))
    with pytest.raises(UserError, match=r'"test_data_sets_gone".*gone\.json'):
        num_classes("test_data_sets_gone", "instance")


# check_datasets.


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["DATASETS.TRAIN", ("coco_2017_panoptic_train",)], '"coco_2017_panoptic_train".*"coco_2017_.*panoptic'),
        (["DATASETS.TEST", ("shape_val",)], '"shape_val".*"shapes_val"'),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN"),
        (["DATASETS.TRAIN", ("coco_2017_train",)], "coco_2017_train.*instance.*INPUT.TASK"),
        (["DATASETS.TEST", ("coco_2017_val_panoptic",)], rf"coco_2017_val_panoptic.* 133 .*{SHAPES}_train.* 7"),
        (["INPUT.TASK", "depth"], "INPUT.TASK.*depth"),
        (["MODEL.NUM_CLASSES", 133], rf"{SHAPES}_train.* 7 .*MODEL\.NUM_CLASSES.* 133"),
        (["MODEL.CLASSES", ["cat", "square"]], rf"MODEL\.CLASSES .*cat.*{SHAPES}_train.*disc"),
    ],
)
def test_settings_that_contradict_the_data_are_refused(shapes_root: Path, overrides: list, match: str) -> None:
    cfg = config(f"{SHAPES}_train")
    cfg.MODEL.CLASSES = class_names(f"{SHAPES}_train", "panoptic")
    check_datasets(cfg)
    cfg.merge_from_list(overrides)
    with pytest.raises(UserError, match=match):
        check_datasets(cfg)


def test_only_what_is_missing_is_named(shapes_root: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    for entry in (shapes_root / "shapes").iterdir():
        if entry.name != "annotations":
            (tmp_path / "shapes" / entry.name).symlink_to(entry)
    register_shapes(tmp_path, "test_data_sets_partly")
    annotations = tmp_path / "shapes" / "annotations"
    for train, kinds in ((True, ["panoptic_train"]), (False, ["panoptic_val", "instances_val"])):
        with pytest.raises(UserError, match=r"DETECTRON2_DATASETS.*datasets/README\.md") as raised:
            check_datasets(config("test_data_sets_partly_train", "test_data_sets_partly_val"), train, not train)
        assert "python datasets/shapes.py" in str(raised.value)
        assert [word.rstrip(".,") for word in str(raised.value).split() if "json" in word] == [
            str(annotations / f"{kind}.json") for kind in kinds
        ]


def test_a_test_set_may_be_annotated_for_less(shapes_root: Path, data_dir: Path) -> None:
    """A panoptic model's masks can be evaluated on an instance set."""
    register_instances(data_dir, "test_data_sets_less")
    check_datasets(config(f"{SHAPES}_train", "test_data_sets_less"))


# Loaders.


def test_train_loader(shapes_root: Path) -> None:
    batches = list(islice(build_train_loader(config(f"{SHAPES}_train")), 6))
    assert {len(batch) for batch in batches} == {2}
    seen = {image["image_id"] for batch in batches for image in batch}
    assert len(seen) == 8, "8 images are drawn without replacement, so 12 draws see all"


@pytest.mark.parametrize("grouping", [True, False])
def test_a_batch_depends_on_its_number_alone(shapes_root: Path, grouping: bool) -> None:
    cfg = config(f"{SHAPES}_train")
    cfg.SEED, cfg.DATALOADER.ASPECT_RATIO_GROUPING = 1, grouping

    def batches(workers: int, start: int) -> list:
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = build_train_loader(cfg)
        loader.batch_sampler.start = start
        seed_all_rng(workers + start)
        return [image for batch in islice(loader, 12 - start) for image in batch]

    whole = batches(0, 0)
    for workers, start in ((2, 0), (0, 7), (2, 7)):
        for a, b in zip(whole[2 * start :], batches(workers, start), strict=True):
            assert a["image_id"] == b["image_id"] and torch.equal(a["image"], b["image"])
    of_one = [image["image"] for image in whole if image["image_id"] == whole[0]["image_id"]]
    assert len(of_one) == 3 and not torch.equal(of_one[0], of_one[1])  # it is varied anew each time


def test_there_are_no_more_workers_than_cores(shapes_root: Path) -> None:
    cfg = config(f"{SHAPES}_train")
    cfg.DATALOADER.NUM_WORKERS = 1000
    assert build_train_loader(cfg).num_workers == len(os.sched_getaffinity(0))


def test_an_unknown_sampler_is_refused(shapes_root: Path) -> None:
    cfg = config(f"{SHAPES}_train")
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatTrainingSampler"
    with pytest.raises(UserError, match="DATALOADER.SAMPLER_TRAIN.*RepeatFactorTrainingSampler"):
        build_train_loader(cfg)


def test_test_loader(shapes_root: Path) -> None:
    batches = list(build_test_loader(config(f"{SHAPES}_train"), f"{SHAPES}_val"))
    ids = [r["image_id"] for r in DatasetCatalog.get(f"{SHAPES}_val")]
    assert [[image["image_id"] for image in batch] for batch in batches] == [[i] for i in ids]


def test_a_file_that_goes_missing_is_replaced_in_training_and_ends_evaluation(tmp_path: Path) -> None:
    shapes.generate(tmp_path, shapes.Parameters(train=4, val=2, size=64), progress=False)
    register_shapes(tmp_path, "test_data_sets_missing")
    cfg = config("test_data_sets_missing_train")
    train, test = build_train_loader(cfg), build_test_loader(cfg, "test_data_sets_missing_val")
    for split in ("train", "val"):
        Path(DatasetCatalog.get(f"test_data_sets_missing_{split}")[1]["file_name"]).unlink()
    batches = list(islice(train, 4))
    assert sum("unreadable" in image for batch in batches for image in batch) == 2  # of two rounds through four images
    with pytest.raises(UserError, match=r"\.jpg.*evaluation"):
        list(test)


def test_images_without_objects_are_dropped_if_asked(data_dir: Path) -> None:
    content = json.loads(register_instances(data_dir, "test_data_sets_filter").read_text())
    usable = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    cfg = config("test_data_sets_filter", task="instance")
    assert len(content["images"]) > len(usable)
    for filter_empty, expected in ((True, len(usable)), (False, len(content["images"]))):
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
        assert len(build_train_loader(cfg).dataset) == expected


@pytest.mark.usefixtures("empty_catalogs")
@pytest.mark.parametrize(("suffix", "task"), [("_panoptic", "panoptic"), ("", "instance")])
def test_builtin_names_work_as_they_are(data_dir: Path, suffix: str, task: str) -> None:
    register_all_coco(str(data_dir / "coco_panoptic"))
    test = f"coco_2017_val{suffix}"
    cfg = config(f"coco_2017_train{suffix}", test, task)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SCALE, cfg.INPUT.MIN_SIZE_TEST = 0, 1, 1.0, 128
    check_datasets(cfg)
    (image,) = next(iter(build_train_loader(cfg)))
    (test_image,) = next(iter(build_test_loader(cfg, test)))
    assert len(image["instances"]) > 0 and min(test_image["image"].shape[1:]) == 128
