import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.datasets.builtin import register_all_ade20k
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from dformer.d2.config import get_cfg
from dformer.d2.data import build_test_loader, build_train_loader, check_datasets
from dformer.d2.data.ade20k import CLASSES, STUFF, THINGS, register_ade20k
from dformer.utils.errors import UserError
from tests import load_script
from tests.datasets import check_measures

script = load_script("datasets/prepare_ade20k_sem_seg.py")
instance_script = load_script("datasets/prepare_ade20k_ins_seg.py")
panoptic_script = load_script("datasets/prepare_ade20k_pan_seg.py")
ANNOTATED = "annotations_instance"


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
    folders = script.prepare(root, progress=False)
    files = sorted((root / "ADEChallengeData2016" / "annotations").glob("*/*.png"))
    assert len(files) == 4 and [folder.name for folder in folders] == ["training", "validation"]
    for file in files:
        published = np.asarray(Image.open(file)).astype(int)
        expected = np.where(published == 0, 255, published - 1)
        np.testing.assert_array_equal(
            np.asarray(Image.open(folders[0].parent / file.parent.name / file.name)), expected
        )


def test_prepared_labels_stay_and_missing_ones_are_added(root: Path) -> None:
    validation = script.prepare(root, progress=False)[1]
    files = sorted(validation.iterdir())
    files[0].write_bytes(b"mine")
    script.prepare(root, progress=False)
    assert files[0].read_bytes() == b"mine"
    files[1].unlink()
    script.prepare(root, progress=False)
    assert sorted(validation.iterdir()) == files and files[0].read_bytes() != b"mine"


def test_labels_that_are_not_ade20ks_are_named(root: Path, tmp_path: Path) -> None:
    file = root / "ADEChallengeData2016" / "annotations" / "training" / "ADE_train_00000001.png"
    Image.fromarray(np.full((4, 4), 151, np.uint8)).save(file)
    with pytest.raises(UserError, match=f"{file.name}.* 151"):
        script.prepare(root, progress=False)
    with pytest.raises(UserError, match="annotations.training"):
        script.prepare(tmp_path / "nowhere", progress=False)


# Instances and panoptic. The published instances are a separate download; here, connected parts of the things replace
# them, in the format of the published files, some of them grown over the stuff beside them.


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
        target = folder / ANNOTATED / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    return root


def instance_pictures(root: Path, split: str) -> dict[str, np.ndarray]:
    folder = root / "ADEChallengeData2016" / ANNOTATED / split
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
            check_measures(annotation, mask)
            assert annotation["category_id"] == THINGS[picture[mask][0, 0] - 1]


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
            check_measures(segment, mask)
        np.testing.assert_array_equal(found, expected)
        instances = [s for s in annotation["segments_info"] if s["category_id"] in THINGS]
        assert len(instances) == len(np.unique(picture[:, :, 1])) - 1


@pytest.mark.usefixtures("empty_catalogs")
def test_prepared_sets_train_under_their_names(with_instances: Path) -> None:
    for prepare in (script, instance_script, panoptic_script):
        prepare.prepare(with_instances, progress=False)
    register_all_ade20k(str(with_instances))
    register_ade20k(with_instances)
    for kind, task in (("panoptic", "panoptic"), ("instance", "instance"), ("sem_seg", "semantic")):
        name, cfg = f"ade20k_{kind}", get_cfg()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.INPUT.TASK = (f"{name}_train",), (f"{name}_val",), task
        cfg.MODEL.NUM_CLASSES, cfg.INPUT.IMAGE_SIZE = 100 if task == "instance" else 150, 128
        cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SCALE = 0, 1, 1.0
        check_datasets(cfg)
        (image,) = next(iter(build_train_loader(cfg)))
        assert len(image["instances"]) > 0 and len(list(build_test_loader(cfg, f"{name}_val"))) == 3


def test_a_split_appears_when_it_is_complete(with_instances: Path) -> None:
    folder = with_instances / "ADEChallengeData2016"
    before = {*folder.iterdir()}
    for kind, module in (("annotations", script), *((ANNOTATED, m) for m in (instance_script, panoptic_script))):
        broken = folder / kind / "validation" / "ADE_val_00000003.png"
        good = broken.read_bytes()
        broken.write_bytes(good[: len(good) // 2])
        with pytest.raises(UserError, match=broken.name):
            module.prepare(with_instances, progress=False)
        broken.write_bytes(good)
    new = {path.name for path in {*folder.iterdir()} - before}
    splits = {"ade20k_instance_train.json", "ade20k_panoptic_train", "ade20k_panoptic_train.json"}
    assert new == {*splits, "annotations_detectron2"}
    assert [path.name for path in (folder / "annotations_detectron2").iterdir()] == ["training"]


@pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: np.where(p[..., 1:2] == 1, (101, 1, 0), p)])
def test_instances_that_are_not_ade20ks_are_named(with_instances: Path, damage: Any) -> None:
    file = sorted((with_instances / "ADEChallengeData2016" / ANNOTATED / "training").iterdir())[0]
    Image.fromarray(damage(np.asarray(Image.open(file))).astype(np.uint8)).save(file)
    for module in (instance_script, panoptic_script):
        with pytest.raises(UserError, match=file.name):
            module.prepare(with_instances, progress=False)


def test_missing_instances_are_named(root: Path, data_dir: Path) -> None:
    folder = root / "ADEChallengeData2016"
    with pytest.raises(UserError, match="images.training"):
        instance_script.prepare(root, progress=False)
    (folder / "images").symlink_to(data_dir / "ade20k" / "ADEChallengeData2016" / "images")
    with pytest.raises(UserError, match="annotations_instance.training.*ADE_train_00000001"):
        panoptic_script.prepare(root, progress=False)
