"""Mappers on real images and on the awkward ones."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets import load_coco_json
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools.coco import COCO

from dformer.d2.config import get_cfg
from dformer.d2.data.augmentations import train_augmentations
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.data.annotations import annotation_reader
from dformer.data.panoptic import semantic_from_panoptic
from dformer.utils.errors import UserError
from tests.d2.data.records import TASK_OF_FORM, VOID, Record, coco_panoptic, config, plain_mapper, write_record

# Real images, no augmentation: targets are the annotation.


def test_things_of_a_panoptic_set_serve_instance_training(data_dir: Path) -> None:
    records, *_ = coco_panoptic(data_dir, 8)
    for record in records:
        panoptic, instance = plain_mapper("panoptic")(record), plain_mapper("instance")(record)
        things = panoptic["instances"].gt_classes < 80
        assert torch.equal(instance["instances"].gt_classes, panoptic["instances"].gt_classes[things])
        assert torch.equal(instance["instances"].gt_masks, panoptic["instances"].gt_masks[things])


def test_semantic_labels_of_a_panoptic_set(data_dir: Path) -> None:
    """Crowds have their class, void has none; the mapper and the evaluation's function agree."""
    records, content, metadata = coco_panoptic(data_dir, 12)
    contiguous = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    for record, annotation in zip(records, content["annotations"], strict=True):
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        expected = np.full(ids.shape, VOID)
        for segment in annotation["segments_info"]:
            expected[ids == segment["id"]] = contiguous[segment["category_id"]]
        labels = semantic_from_panoptic(ids, annotation["segments_info"], metadata)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        instances = plain_mapper("semantic")(record)["instances"]
        assert sorted(instances.gt_classes.tolist()) == sorted(set(np.unique(expected)) - {VOID})
        np.testing.assert_array_equal(instances.gt_masks, expected == instances.gt_classes[:, None, None].numpy())
    with pytest.raises(UserError, match="segment 5 .* 12.*coco_2017"):
        semantic_from_panoptic(np.full((2, 2), 5), [{"id": 5, "category_id": 12}], metadata)


def test_instance_targets_are_the_masks_of_coco(data_dir: Path) -> None:
    root = data_dir / "coco_instance" / "coco"
    json_file = str(root / "annotations" / "instances_val2017.json")
    coco = COCO(json_file)
    mapper = plain_mapper("instance", 80)
    crowds = empty = 0
    for record in load_coco_json(json_file, str(root / "val2017")):
        annotations = coco.loadAnns(coco.getAnnIds(record["image_id"]))
        kept = [a for a in annotations if not a["iscrowd"]]
        crowds += len(annotations) - len(kept)
        empty += not annotations
        instances = mapper(record)["instances"]
        masks = np.array([coco.annToMask(a) for a in kept]).reshape(-1, record["height"], record["width"])
        visible = masks.any((1, 2))
        np.testing.assert_array_equal(instances.gt_masks, masks[visible])
        expected = [kept[i]["category_id"] for i in np.flatnonzero(visible)]
        assert instances.gt_classes.tolist() == expected  # not contiguous here: loaded without the mapping
    assert crowds and empty, "neither crowds nor empty images were met; the test must see some"


# INPUT.TARGET


def real_targets(data_dir: Path, task: str, target: str) -> list[Record]:
    """What the mapper delivers of real images, each varied in the same way whatever the target."""
    if task == "panoptic":
        records, *_ = coco_panoptic(data_dir, 8)
    else:
        root = data_dir / "coco_instance" / "coco"
        records = load_coco_json(str(root / "annotations" / "instances_val2017.json"), str(root / "val2017"))[:8]
    cfg = config(task, "lsj", size=256)
    cfg.MODEL.NUM_CLASSES, cfg.INPUT.TARGET = 133, target
    mapper = TrainMapper.from_config(cfg)
    np.random.seed(0)
    return [mapper(record) for record in records]


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_boxes_are_tight_around_the_masks(data_dir: Path, task: str) -> None:
    pairs = zip(real_targets(data_dir, task, "masks"), real_targets(data_dir, task, "boxes"), strict=True)
    for plain, item in pairs:
        masks, instances = plain["instances"].gt_masks, item["instances"]
        assert torch.equal(instances.gt_masks, masks) and torch.equal(plain["image"], item["image"])
        places = [np.nonzero(mask.numpy()) for mask in masks]
        boxes = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] for ys, xs in places]
        np.testing.assert_array_equal(instances.gt_boxes.tensor, np.reshape(boxes, (-1, 4)))


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_in_the_panoptic_map_smaller_objects_are_over_larger_ones(data_dir: Path, task: str) -> None:
    overlaps = 0
    pairs = zip(real_targets(data_dir, task, "masks"), real_targets(data_dir, task, "panoptic_map"), strict=True)
    for plain, item in pairs:
        numbers, masks, classes = item["panoptic_map"], plain["instances"].gt_masks, plain["instances"].gt_classes
        assert (numbers.dtype, numbers.shape) == (torch.int64, (256, 256)) and not item["instances"].has("gt_masks")
        assert torch.unique(numbers[numbers > 0]).tolist() == list(range(1, len(item["instances"]) + 1))
        areas = torch.where(masks, masks.flatten(1).sum(1)[:, None, None], 256**2 + 1)
        smallest = areas.argmin(0) if len(masks) else numbers
        assert torch.equal(numbers > 0, masks.any(0))
        if task == "panoptic":  # without overlaps, each object has its number
            assert torch.equal(numbers[numbers > 0] - 1, smallest[numbers > 0])
        found = item["instances"].gt_classes[numbers[numbers > 0] - 1]
        assert torch.equal(found, classes[smallest[numbers > 0]])
        overlaps += int((masks.sum(0) > 1).sum())
    assert bool(overlaps) == (task == "instance"), "the test must see objects that overlap"


# Awkward images.


@pytest.mark.parametrize("form", list(TASK_OF_FORM))
@pytest.mark.parametrize("augmentation", ["lsj", "crop", "resize"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1)])
def test_flat_images(tmp_path: Path, form: str, augmentation: str, size: tuple[int, int]) -> None:
    record = write_record(tmp_path, np.ones(size, int), {1: 1}, form)
    cfg = config(TASK_OF_FORM[form], augmentation)
    cfg.INPUT.COLOR_AUG_SSD = True
    mapper, test_mapper = TrainMapper.from_config(cfg), TestMapper.from_config(cfg)
    for _ in range(5):
        out = mapper(record)
        assert min(out["image"].shape) >= 1
        assert out["instances"].gt_masks.shape[1:] == out["image"].shape[1:]
        assert (out["height"], out["width"]) == size
    assert min(test_mapper(record)["image"].shape) >= 1


@pytest.mark.parametrize("form", list(TASK_OF_FORM))
def test_image_without_objects(tmp_path: Path, form: str) -> None:
    record = write_record(tmp_path, np.zeros((20, 30), int), {}, form)
    out = TrainMapper.from_config(config(TASK_OF_FORM[form], "lsj"))(record)
    assert out["instances"].gt_masks.shape == (0, 64, 64)
    assert out["instances"].gt_classes.shape == (0,) and out["instances"].gt_classes.dtype == torch.int64


def test_annotations_are_of_the_upright_image(tmp_path: Path) -> None:
    """A picture that EXIF turns by 90 degrees: its annotation has the turned size, or is refused with both sizes."""
    ids = np.zeros((30, 20), int)
    ids[:10] = 1
    record = write_record(tmp_path, ids, {1: 0}, "panoptic")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright = Image.open(record["file_name"])
    upright.transpose(Image.Transpose.ROTATE_90).save(record["file_name"], exif=exif)
    assert Image.open(record["file_name"]).size == (30, 20)
    out = plain_mapper("panoptic")({**record, "height": 30, "width": 20})
    np.testing.assert_array_equal(out["instances"].gt_masks[0], out["image"][0] == 255)
    assert (out["height"], out["width"]) == (30, 20)

    Image.fromarray(id2rgb(ids.T.copy())).save(record["pan_seg_file_name"])
    with pytest.raises(UserError, match=r"image\.png is 20 x 30 .*panoptic\.png is 30 x 20"):
        plain_mapper("panoptic")(record)
    with pytest.raises(UserError, match=r"image\.png is 20 x 30 .*30 x 20"):
        plain_mapper("panoptic")({**record, "height": 20, "width": 30})


def test_more_than_255_classes(tmp_path: Path) -> None:
    record = write_record(tmp_path, np.ones((8, 8), int), {1: 0}, "semantic")
    labels = np.full((8, 8), 600, np.uint16)
    labels[:4] = 1000
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    cfg = config("semantic", "resize")
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 32)
    mapper = TrainMapper(train_augmentations(cfg), annotation_reader("semantic", 1001, 65535), "RGB")
    instances = mapper(record)["instances"]
    assert instances.gt_classes.tolist() == [600, 1000]
    assert instances.gt_masks.float().mean((1, 2)).tolist() == [0.5, 0.5]


def test_mappers_reach_workers_that_are_spawned(tmp_path: Path) -> None:
    mapper = pickle.loads(pickle.dumps(TrainMapper.from_config(config("panoptic", "lsj"))))
    assert len(mapper(write_record(tmp_path, np.ones((8, 8), int), {1: 0}, "panoptic"))["instances"]) == 1


# Bad input: the file or key is named.


def test_annotations_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    semantic = write_record(tmp_path, np.ones((8, 8), int), {1: 150}, "semantic")
    with pytest.raises(UserError, match=r"semantic\.png .* 150"):
        plain_mapper("semantic", 150)(semantic)
    record = write_record(tmp_path, np.ones((8, 8), int), {1: 0}, "rle")
    with pytest.raises(UserError, match="INPUT.TASK"):
        plain_mapper("panoptic")(record)
    with pytest.raises(UserError, match=r"image\.png .*segmentation"):
        plain_mapper("instance")({**record, "annotations": [{"category_id": 0, "bbox": [0, 0, 4, 4]}]})
    Image.new("RGB", (9, 8)).save(record["file_name"])
    for task, annotated in (("instance", record), ("semantic", {**semantic, **record})):
        with pytest.raises(UserError, match=r"image\.png"):
            plain_mapper(task)(annotated)
    with pytest.raises(UserError, match=r"gone\.png"):
        plain_mapper("panoptic")({**record, "segments_info": [], "pan_seg_file_name": str(tmp_path / "gone.png")})


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["INPUT.AUGMENTATION", "mosaic"], "INPUT.AUGMENTATION"),
        (["INPUT.RANDOM_FLIP", "both"], "INPUT.RANDOM_FLIP"),
        (["INPUT.TARGET", "bytes"], "INPUT.TARGET"),
        (["INPUT.CROP.ENABLED", True], "INPUT.CROP.ENABLED"),
        (
            ["INPUT.AUGMENTATION", "crop", "INPUT.TASK", "instance", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75],
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
        ),
    ],
)
def test_wrong_keys_are_refused(overrides: list, key: str) -> None:
    cfg = config("panoptic", "lsj")
    cfg.merge_from_list(overrides)
    with pytest.raises(UserError, match=key):
        TrainMapper.from_config(cfg)


def test_test_mapper_keeps_the_original_size(data_dir: Path) -> None:
    file = next((data_dir / "coco_instance" / "coco" / "val2017").iterdir())
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 128, 400
    width, height = Image.open(file).size
    out = TestMapper.from_config(cfg)({"file_name": str(file), "image_id": 3, "annotations": ["unread"]})
    assert set(out) == {"file_name", "image_id", "height", "width", "image"}
    assert (out["height"], out["width"], min(out["image"].shape[1:])) == (height, width, 128)
    assert out["image"].dtype == torch.uint8
