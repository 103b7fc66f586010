"""Mappers on real images and on the awkward ones."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from dformer.d2.config import get_cfg
from dformer.d2.data.augmentations import ResizeThenCrop, train_augmentations
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.data.annotations import annotation_reader
from dformer.data.panoptic import semantic_from_panoptic
from dformer.utils.errors import UserError

Record = dict[str, Any]
VOID = 255


def plain_mapper(task: str, num_classes: int = 133) -> TrainMapper:
    """Without augmentation."""
    return TrainMapper([], annotation_reader(task, num_classes, VOID), "RGB")


def config(task: str, augmentation: str, size: int = 64) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.NUM_CLASSES = 3
    cfg.DATASETS.TRAIN = ("shapes_train",)
    cfg.INPUT.TASK = task
    cfg.INPUT.AUGMENTATION = augmentation
    cfg.INPUT.IMAGE_SIZE = size
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 0.5, 2.0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (size // 2, 2 * size), 4 * size
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", (size, size)
    return cfg


def write_record(folder: Path, ids: np.ndarray, classes: dict[int, int], form: str) -> Record:
    """A record whose image is white on the first region and black elsewhere, annotated in one of the forms.

    Args:
        ids: (H, W) region of each pixel, 0 is void.
        classes: region -> contiguous class.
        form: "panoptic", "semantic", "rle" or "polygons" (of the regions' boxes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = np.where(ids == 1, 255, 0).astype(np.uint8)
    Image.fromarray(np.repeat(image[..., None], 3, 2)).save(folder / "image.png")
    record: Record = {"file_name": str(folder / "image.png"), "image_id": 7}
    if form == "panoptic":
        Image.fromarray(id2rgb(ids * 55_000)).save(folder / "panoptic.png")
        record["pan_seg_file_name"] = str(folder / "panoptic.png")
        record["segments_info"] = [
            {"id": i * 55_000, "category_id": c, "isthing": True, "iscrowd": 0} for i, c in classes.items()
        ]
    elif form == "semantic":
        labels = np.full(ids.shape, VOID, np.uint8)
        for i, c in classes.items():
            labels[ids == i] = c
        Image.fromarray(labels).save(folder / "semantic.png")
        record["sem_seg_file_name"] = str(folder / "semantic.png")
    else:
        record["annotations"] = []
        for i, c in classes.items():
            mask = np.asfortranarray(ids == i, dtype=np.uint8)
            x, y, w, h = rle.toBbox(rle.encode(mask))
            segmentation = rle.encode(mask) if form == "rle" else [[x, y, x + w, y, x + w, y + h, x, y + h]]
            record["annotations"].append({"category_id": c, "segmentation": segmentation, "iscrowd": 0})
    return record


TASK_OF_FORM = {"panoptic": "panoptic", "semantic": "semantic", "rle": "instance", "polygons": "instance"}


# Real images, no augmentation: targets are the annotation.


def _coco_panoptic(data_dir: Path, count: int) -> tuple[list[Record], dict, Any]:
    """Records, json and metadata of so many images, those with crowds first."""
    root = data_dir / "coco_panoptic" / "coco"
    json_file = root / "annotations" / "panoptic_train2017.json"
    metadata = MetadataCatalog.get("coco_2017_train_panoptic")
    folders = str(root / "train2017"), str(root / "panoptic_train2017")
    records = load_coco_panoptic_json(str(json_file), *folders, metadata.as_dict())
    content = json.loads(json_file.read_text())
    order = sorted(range(len(records)), key=lambda i: not any(s["iscrowd"] for s in records[i]["segments_info"]))
    assert any(s["iscrowd"] for s in records[order[0]]["segments_info"])
    content["annotations"] = [content["annotations"][i] for i in order[:count]]
    return [records[i] for i in order[:count]], content, metadata


def test_panoptic_targets_are_the_segments(data_dir: Path) -> None:
    records, content, metadata = _coco_panoptic(data_dir, 12)
    names = {c["id"]: c["name"] for c in content["categories"]}
    mapper = plain_mapper("panoptic")
    for record, annotation in zip(records, content["annotations"], strict=True):
        out = mapper(record)
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        segments = [s for s in annotation["segments_info"] if not s["iscrowd"]]
        assert (out["height"], out["width"]) == ids.shape == tuple(out["image"].shape[1:])
        assert [metadata.stuff_classes[c] for c in out["instances"].gt_classes] == [
            names[s["category_id"]] for s in segments
        ]
        np.testing.assert_array_equal(out["instances"].gt_masks, [ids == s["id"] for s in segments])


def test_things_of_a_panoptic_set_serve_instance_training(data_dir: Path) -> None:
    records, *_ = _coco_panoptic(data_dir, 8)
    for record in records:
        panoptic, instance = plain_mapper("panoptic")(record), plain_mapper("instance")(record)
        things = panoptic["instances"].gt_classes < 80
        assert torch.equal(instance["instances"].gt_classes, panoptic["instances"].gt_classes[things])
        assert torch.equal(instance["instances"].gt_masks, panoptic["instances"].gt_masks[things])


def test_semantic_labels_of_a_panoptic_set(data_dir: Path) -> None:
    """Crowds have their class, void has none; the mapper and the evaluation's function agree."""
    records, content, metadata = _coco_panoptic(data_dir, 12)
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


def test_unknown_category_of_a_segment_is_named(data_dir: Path) -> None:
    *_, metadata = _coco_panoptic(data_dir, 1)
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
        records, *_ = _coco_panoptic(data_dir, 8)
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


def test_the_panoptic_map_numbers_the_segments(data_dir: Path) -> None:
    pairs = zip(
        real_targets(data_dir, "panoptic", "masks"), real_targets(data_dir, "panoptic", "panoptic_map"), strict=True
    )
    for plain, item in pairs:
        numbers, masks = item["panoptic_map"], plain["instances"].gt_masks
        assert (numbers.dtype, numbers.shape) == (torch.int64, (256, 256)) and not item["instances"].has("gt_masks")
        assert torch.equal(item["instances"].gt_classes, plain["instances"].gt_classes)
        for k, mask in enumerate(masks, start=1):
            assert torch.equal(numbers == k, mask)
        assert torch.equal(numbers > 0, masks.any(0))


def test_in_the_panoptic_map_smaller_objects_are_over_larger_ones(data_dir: Path) -> None:
    overlaps = 0
    pairs = zip(
        real_targets(data_dir, "instance", "masks"), real_targets(data_dir, "instance", "panoptic_map"), strict=True
    )
    for plain, item in pairs:
        numbers, masks, classes = item["panoptic_map"], plain["instances"].gt_masks, plain["instances"].gt_classes
        assert torch.unique(numbers[numbers > 0]).tolist() == list(range(1, len(item["instances"]) + 1))
        areas = torch.where(masks, masks.flatten(1).sum(1)[:, None, None], 256**2)
        smallest = areas.argmin(0) if len(masks) else numbers
        assert torch.equal(numbers > 0, masks.any(0))
        found = item["instances"].gt_classes[numbers[numbers > 0] - 1]
        assert torch.equal(found, classes[smallest[numbers > 0]])
        overlaps += int((masks.sum(0) > 1).sum())
    assert overlaps, "no objects overlap; the test must see some"


# Augmentation: masks stay on what they mark.


@pytest.mark.parametrize("form", list(TASK_OF_FORM))
@pytest.mark.parametrize("augmentation", ["lsj", "crop", "resize"])
@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
def test_masks_follow_the_image(tmp_path: Path, form: str, augmentation: str, flip: str) -> None:
    """The image is white where the first region is: after any augmentation the two agree, to a fraction of a pixel."""
    ids = np.zeros((50, 80), int)
    ids[8:38, 11:46] = 1
    ids[3:20, 60:77] = 2
    record = write_record(tmp_path, ids, {1: 2, 2: 0}, form)
    cfg = config(TASK_OF_FORM[form], augmentation)
    cfg.INPUT.RANDOM_FLIP = flip
    mapper = TrainMapper.from_config(cfg)
    np.random.seed(0)
    offsets = []
    for _ in range(25):
        out = mapper(record)
        height, width = out["image"].shape[1:]
        instances = out["instances"]
        assert instances.gt_masks.dtype == torch.bool and instances.gt_masks.shape[1:] == (height, width)
        assert (out["height"], out["width"], out["image_id"]) == (50, 80, 7)
        if augmentation == "lsj":
            assert (height, width) == (64, 64)
        if 2 not in instances.gt_classes:
            continue
        mask = instances.gt_masks[instances.gt_classes == 2][0]
        white = out["image"][0] > 128
        assert (mask ^ white).sum() <= 2 * (height + width) ** 0.5 + 0.02 * mask.sum()
        inner = torch.nonzero(mask).float().mean(0) - torch.nonzero(white).float().mean(0)
        offsets.append(inner.numpy())
    assert len(offsets) > 15
    assert np.abs(np.mean(offsets, 0)).max() < 0.2, "masks are shifted against the image"


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resized=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    cropped=st.integers(1, 60),
)
def test_resize_then_crop_is_the_two_in_turn(
    size: tuple[int, int], resized: tuple[int, int], place: tuple[float, float], cropped: int
) -> None:
    """To the last bit, for images, label maps and points."""
    height, width = (min(cropped, side) for side in resized)
    y, x = (int(p * (side - c)) for p, side, c in zip(place, resized, (height, width), strict=True))
    resize, crop = T.ResizeTransform(*size, *resized), T.CropTransform(x, y, width, height)
    both = ResizeThenCrop(resize, crop)
    random = np.random.default_rng(0)
    image, labels = random.integers(0, 256, (*size, 3), np.uint8), random.integers(0, 256, size, np.uint8)
    points = 40 * random.random((5, 2))
    np.testing.assert_array_equal(both.apply_image(image), crop.apply_image(resize.apply_image(image)))
    expected = crop.apply_segmentation(resize.apply_segmentation(labels))
    np.testing.assert_array_equal(both.apply_segmentation(labels), expected)
    np.testing.assert_array_equal(
        both.apply_coords(points.copy()), crop.apply_coords(resize.apply_coords(points.copy()))
    )


def test_jitter_is_that_of_detectron2(data_dir: Path) -> None:
    """Images and masks of real images are those of Detectron2's transforms, each applied to all of the picture."""
    records, *_ = _coco_panoptic(data_dir, 20)
    cfg = config("panoptic", "lsj", size=256)
    cfg.MODEL.NUM_CLASSES = 133
    cfg.INPUT.MIN_SCALE = 0.1
    mapper = TrainMapper.from_config(cfg)
    square = (256, 256)
    plain = [T.ResizeScale(0.1, 2.0, *square), T.RandomCrop("absolute", square), T.RandomFlip()]
    lost = 0
    for seed, record in enumerate(records):
        np.random.seed(seed)
        out = mapper(record)
        np.random.seed(seed)
        augmented = T.AugInput(np.asarray(Image.open(record["file_name"]).convert("RGB")))
        transforms = T.AugmentationList(plain)(augmented)
        ids = rgb2id(transforms.apply_segmentation(np.asarray(Image.open(record["pan_seg_file_name"]))))
        height, width = ids.shape
        image = np.full((*square, 3), 128, np.uint8)
        image[:height, :width] = augmented.image
        np.testing.assert_array_equal(out["image"], image.transpose(2, 0, 1))
        segments = [s for s in record["segments_info"] if not s["iscrowd"]]
        seen = [s for s in segments if (ids == s["id"]).any()]
        masks = np.zeros((len(seen), *square), bool)
        masks[:, :height, :width] = [ids == s["id"] for s in seen]
        np.testing.assert_array_equal(out["instances"].gt_masks, masks)
        assert out["instances"].gt_classes.tolist() == [s["category_id"] for s in seen]
        lost += len(segments) - len(seen)
    assert lost, "no crop has dropped a segment; the test must see some"


def test_more_segments_than_a_byte_counts(tmp_path: Path) -> None:
    ids = np.arange(1, 301).reshape(15, 20)
    record = write_record(tmp_path, ids, {i: i % 133 for i in range(1, 301)}, "panoptic")
    instances = plain_mapper("panoptic")(record)["instances"]
    assert instances.gt_classes.tolist() == [i % 133 for i in range(1, 301)]
    np.testing.assert_array_equal(instances.gt_masks, [ids == i for i in range(1, 301)])


def test_objects_that_the_crop_loses_are_dropped(tmp_path: Path) -> None:
    ids = np.zeros((100, 100), int)
    ids[:, :5], ids[0, 50], ids[:, 95:] = 1, 2, 3
    for form in ("panoptic", "rle", "polygons"):
        record = write_record(tmp_path / form, ids, {1: 0, 2: 1, 3: 2}, form)
        cfg = config(TASK_OF_FORM[form], "crop", size=10)
        cfg.INPUT.MIN_SIZE_TRAIN = (100, 100)
        cfg.INPUT.MAX_SIZE_TRAIN = 100
        mapper = TrainMapper.from_config(cfg)
        np.random.seed(1)
        seen = []
        for _ in range(60):
            instances = mapper(record)["instances"]
            assert instances.gt_masks.shape[1:] == (10, 10)
            assert instances.gt_masks.flatten(1).any(1).all()
            assert len(instances.gt_classes) == len(instances.gt_masks)
            seen += [tuple(instances.gt_classes.tolist())]
        assert {(), (0,), (2,)} <= set(seen)
        assert (0, 2) not in seen


def test_share_of_one_category_is_limited(tmp_path: Path) -> None:
    ids = np.ones((64, 64), int)
    ids[:, 40:] = 2
    record = write_record(tmp_path, ids, {1: 0, 2: 1}, "semantic")

    def largest_shares(limit: float) -> list[float]:
        cfg = config("semantic", "crop", size=24)
        cfg.INPUT.MIN_SIZE_TRAIN = (64, 64)
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = limit
        mapper = TrainMapper.from_config(cfg)
        np.random.seed(2)
        return [mapper(record)["instances"].gt_masks.float().mean((1, 2)).max().item() for _ in range(40)]

    assert np.mean([share > 0.75 for share in largest_shares(1.0)]) > 0.5
    assert np.mean([share > 0.75 for share in largest_shares(0.75)]) < 0.1


def test_colour_changes_and_geometry_does_not(tmp_path: Path) -> None:
    ids = np.zeros((32, 32), int)
    ids[4:20, 6:30] = 1
    record = write_record(tmp_path, ids, {1: 0}, "panoptic")
    Image.fromarray(np.full((32, 32, 3), (200, 120, 60), np.uint8)).save(record["file_name"])
    cfg = config("panoptic", "resize", 32)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.COLOR_AUG_SSD = (32, 32), "none", True
    outs = [TrainMapper.from_config(cfg)(record) for _ in range(12)]
    assert len({tuple(out["image"][:, 0, 0].tolist()) for out in outs}) > 4
    for out in outs:
        np.testing.assert_array_equal(out["instances"].gt_masks[0], ids == 1)


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
    mapper = TrainMapper(
        train_augmentations(config("semantic", "resize")), annotation_reader("semantic", 1001, 65535), "RGB"
    )
    instances = mapper(record)["instances"]
    assert instances.gt_classes.tolist() == [600, 1000]
    assert instances.gt_masks.float().mean((1, 2)).tolist() == [0.5, 0.5]


def test_mappers_reach_workers_that_are_spawned(tmp_path: Path) -> None:
    mapper = pickle.loads(pickle.dumps(TrainMapper.from_config(config("panoptic", "lsj"))))
    assert len(mapper(write_record(tmp_path, np.ones((8, 8), int), {1: 0}, "panoptic"))["instances"]) == 1


# Bad input: the file or key is named.


@pytest.mark.parametrize("form", ["semantic", "rle"])
def test_sizes_that_differ_are_refused(tmp_path: Path, form: str) -> None:
    record = write_record(tmp_path, np.ones((20, 30), int), {1: 0}, form)
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(record["file_name"])
    with pytest.raises(UserError, match=r"image\.png"):
        plain_mapper(TASK_OF_FORM[form])(record)


def test_annotations_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    semantic = write_record(tmp_path, np.ones((8, 8), int), {1: 150}, "semantic")
    with pytest.raises(UserError, match=r"semantic\.png .* 150"):
        plain_mapper("semantic", 150)(semantic)
    record = write_record(tmp_path, np.ones((8, 8), int), {1: 0}, "rle")
    with pytest.raises(UserError, match="INPUT.TASK"):
        plain_mapper("panoptic")(record)
    with pytest.raises(UserError, match=r"image\.png .*segmentation"):
        plain_mapper("instance")({**record, "annotations": [{"category_id": 0, "bbox": [0, 0, 4, 4]}]})
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
