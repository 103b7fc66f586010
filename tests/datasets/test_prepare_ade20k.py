import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from dformer.d2.data.ade20k import CLASSES, STUFF, THINGS
from dformer.utils.errors import UserError
from tests.datasets import load_script

script = load_script("prepare_ade20k_sem_seg")
instance_script = load_script("prepare_ade20k_ins_seg")
panoptic_script = load_script("prepare_ade20k_pan_seg")


@pytest.fixture
def root(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the published labels that may be changed."""
    source = data_dir / "ade20k" / "ADEChallengeData2016" / "annotations"
    for file in source.glob("*/*.png"):
        target = tmp_path / "ADEChallengeData2016" / "annotations" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path


def test_labels_are_shifted_and_void_is_255(root: Path) -> None:
    prepared = script.prepare(root, progress=False)
    files = sorted((root / "ADEChallengeData2016" / "annotations").glob("*/*.png"))
    assert len(files) == 4
    for file in files:
        published = np.asarray(Image.open(file)).astype(int)
        expected = np.where(published == 0, 255, published - 1)
        np.testing.assert_array_equal(np.asarray(Image.open(prepared / file.parent.name / file.name)), expected)
    assert not list(prepared.glob("*.partial"))


def test_prepared_labels_are_left_alone_and_missing_ones_added(root: Path) -> None:
    prepared = script.prepare(root, progress=False)
    files = sorted((prepared / "validation").iterdir())
    files[0].write_bytes(b"mine")
    script.prepare(root, progress=False)
    assert files[0].read_bytes() == b"mine"
    files[1].unlink()
    script.prepare(root, progress=False)
    assert sorted((prepared / "validation").iterdir()) == files
    assert (
        Image.open(files[0]).size == Image.open(files[0].parents[2] / "annotations" / "validation" / files[0].name).size
    )


def test_an_interrupted_split_is_not_in_place_and_goes_on(root: Path) -> None:
    broken = root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000002.png"
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=r"ADE_val_00000002\.png cannot be read"):
        script.prepare(root, progress=False)
    prepared = root / "ADEChallengeData2016" / "annotations_detectron2"
    assert not (prepared / "validation").exists()
    broken.write_bytes(good)
    script.prepare(root, progress=False)
    assert len(list((prepared / "validation").iterdir())) == 3


def test_a_label_that_is_not_ade20ks_is_named(root: Path) -> None:
    file = root / "ADEChallengeData2016" / "annotations" / "training" / "ADE_train_00000001.png"
    Image.fromarray(np.full((4, 4), 151, np.uint8)).save(file)
    with pytest.raises(UserError, match=r"ADE_train_00000001\.png is not a label map of ADE20K.*largest value is 151"):
        script.prepare(root, progress=False)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no PNGs in .*annotations.training"):
        script.prepare(tmp_path, progress=False)


# Instances and panoptic. The published instances are a download of their own; here, connected parts of the things stand
# in for them, in the published files' format, some of them grown over the stuff beside them.


@pytest.fixture
def with_instances(root: Path, data_dir: Path) -> Path:
    folder = root / "ADEChallengeData2016"
    (folder / "images").symlink_to(data_dir / "ade20k" / "ADEChallengeData2016" / "images")
    for file in sorted((folder / "annotations").glob("*/*.png")):
        labels = np.asarray(Image.open(file)).astype(int)
        picture = np.zeros((*labels.shape, 3), np.uint8)
        count = 0
        for number, thing in enumerate(THINGS, start=1):
            parts, found = ndimage.label(labels == thing + 1)
            for part in range(1, min(found, 3) + 1):
                count += 1
                mask = ndimage.binary_dilation(parts == part, iterations=2)
                picture[mask] = (number, count, 77)
        target = folder / "annotations_instance" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    return root


def instance_pictures(root: Path, split: str) -> dict[str, np.ndarray]:
    folder = root / "ADEChallengeData2016" / "annotations_instance" / split
    return {file.stem: np.asarray(Image.open(file)) for file in sorted(folder.iterdir())}


@pytest.mark.parametrize(("split", "images"), [("train", "training"), ("val", "validation")])
def test_instances_as_published(with_instances: Path, split: str, images: str) -> None:
    instance_script.prepare(with_instances, progress=False)
    folder = with_instances / "ADEChallengeData2016"
    content = json.loads((folder / f"ade20k_instance_{split}.json").read_text())
    pictures = instance_pictures(with_instances, images)
    assert [i["id"] for i in content["images"]] == list(pictures)
    assert [c["id"] for c in content["categories"]] == list(THINGS)
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for image in content["images"]:
        picture = pictures[image["id"]]
        assert picture.shape[:2] == (image["height"], image["width"])
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        present = np.unique(picture[:, :, 1])[1:]
        for k, annotation in zip(present, own, strict=True):
            mask = picture[:, :, 1] == k
            np.testing.assert_array_equal(rle.decode(annotation["segmentation"]), mask)
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert (annotation["area"], annotation["bbox"], annotation["iscrowd"]) == (mask.sum(), box, 0)
            assert annotation["category_id"] == THINGS[picture[mask][0, 0] - 1]
    assert {p.name for p in folder.iterdir()} == {
        "images", "annotations", "annotations_instance", "ade20k_instance_train.json", "ade20k_instance_val.json"
    }  # fmt: skip


@pytest.mark.parametrize(("split", "images"), [("train", "training"), ("val", "validation")])
def test_panoptic_as_published(with_instances: Path, split: str, images: str) -> None:
    """Stuff of the semantic labels, things of the instances over it, void elsewhere."""
    panoptic_script.prepare(with_instances, progress=False)
    folder = with_instances / "ADEChallengeData2016"
    content = json.loads((folder / f"ade20k_panoptic_{split}.json").read_text())
    assert [(c["id"], c["name"], c["isthing"]) for c in content["categories"]] == [
        (k, name, int(k in THINGS)) for k, name in enumerate(CLASSES)
    ]
    for annotation in content["annotations"]:
        ids = rgb2id(np.asarray(Image.open(folder / f"ade20k_panoptic_{split}" / annotation["file_name"])))
        labels = np.asarray(Image.open(folder / "annotations" / images / annotation["file_name"])).astype(int) - 1
        picture = instance_pictures(with_instances, images)[annotation["image_id"]]
        expected = np.where(np.isin(labels, STUFF), labels, -1)
        expected[picture[:, :, 1] > 0] = np.array([*THINGS, 0])[picture[:, :, 0].astype(int) - 1][picture[:, :, 1] > 0]
        found = np.full(ids.shape, -1)
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            found[mask] = segment["category_id"]
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert (segment["area"], segment["bbox"], segment["iscrowd"]) == (mask.sum(), box, 0)
        np.testing.assert_array_equal(found, expected)
        instances = [s for s in annotation["segments_info"] if s["category_id"] in THINGS]
        assert len(instances) == len(np.unique(picture[:, :, 1])) - 1


USE = """
from dformer.d2.config import get_cfg
from dformer.d2.data import build_test_loader, build_train_loader, check_datasets

for name, task, classes in (
    ("ade20k_panoptic", "panoptic", 150), ("ade20k_instance", "instance", 100), ("ade20k_sem_seg", "semantic", 150)
):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name + "_train",), (name + "_val",)
    cfg.INPUT.TASK, cfg.MODEL.NUM_CLASSES, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TEST = task, classes, 128, 128
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SCALE = 0, 1, 1.0
    check_datasets(cfg)
    (image,) = next(iter(build_train_loader(cfg)))
    print("found", len(list(build_test_loader(cfg, name + "_val"))), len(image["instances"]) > 0)
"""


def test_prepared_sets_train_under_their_names(with_instances: Path) -> None:
    for prepare in (script, instance_script, panoptic_script):
        prepare.prepare(with_instances, progress=False)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(with_instances), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("found")] == ["found 3 True"] * 3


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_stopped_preparation_goes_on(
    with_instances: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = {"instance": instance_script, "panoptic": panoptic_script}[kind]
    folder = with_instances / "ADEChallengeData2016"
    broken = folder / "annotations_instance" / "validation" / "ADE_val_00000003.png"
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=r"ADE_val_00000003\.png cannot be read"):
        module.prepare(with_instances, progress=False)
    assert not (folder / f"ade20k_{kind}_val.json").exists() and not (folder / f"ade20k_{kind}_val").exists()
    broken.write_bytes(good)
    done = []
    prepare_image = module._prepare_image
    monkeypatch.setattr(module, "_prepare_image", lambda *a: done.append(a[2]) or prepare_image(*a))
    module.prepare(with_instances, progress=False)
    assert done == ["ADE_val_00000003"]
    content = json.loads((folder / f"ade20k_{kind}_val.json").read_text())
    assert [i["id"] for i in content["images"]] == [f"ADE_val_0000000{k}" for k in (1, 2, 3)]
    module.prepare(with_instances, progress=False)
    assert done == ["ADE_val_00000003"], "what is prepared is left alone"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p[:-1], "is 400 x 299, its image 400 x 300 pixels|is 683 x 511, its image 683 x 512 pixels"),
        (lambda p: np.where(p[..., 1:2] == 1, np.array([101, 1, 0]), p), r"instance 1 should be of one class"),
        (lambda p: np.where(p[..., 1:2] == 2, np.array([255, 1, 0]), p), r"instance 1 should be of one class"),
    ],
)
def test_instances_that_are_not_ade20ks_are_named(with_instances: Path, damage: Any, message: str) -> None:
    file = sorted((with_instances / "ADEChallengeData2016" / "annotations_instance" / "training").iterdir())[0]
    Image.fromarray(damage(np.asarray(Image.open(file))).astype(np.uint8)).save(file)
    for module in (instance_script, panoptic_script):
        with pytest.raises(UserError, match=message):
            module.prepare(with_instances, progress=False)


def test_missing_instances_are_named(root: Path, data_dir: Path) -> None:
    folder = root / "ADEChallengeData2016"
    with pytest.raises(UserError, match=r"no images in .*images.training"):
        instance_script.prepare(root, progress=False)
    (folder / "images").symlink_to(data_dir / "ade20k" / "ADEChallengeData2016" / "images")
    with pytest.raises(
        UserError, match=r"annotations_instance.training has no PNG for 1 of 1 images, ADE_train_00000001"
    ):
        panoptic_script.prepare(root, progress=False)
