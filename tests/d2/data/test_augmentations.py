"""Augmentation: masks stay on what they mark."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st
from panopticapi.utils import rgb2id
from PIL import Image
from safetensors.torch import load_file

from dformer.d2.data.augmentations import ResizeThenCrop, train_augmentations
from dformer.d2.data.augmentations import test_augmentations as inference_augmentations
from dformer.d2.data.mappers import TrainMapper
from dformer.signals.bits import int_to_bits
from tests.d2.data.records import TASK_OF_FORM, coco_panoptic, config, plain_mapper, write_record


@pytest.mark.parametrize("form", list(TASK_OF_FORM))
@pytest.mark.parametrize(
    ("augmentation", "flip"),
    [*product(["lsj", "crop", "resize", "detr"], ["horizontal", "vertical"]), ("native", "rotate")],
)
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
        if augmentation in ("lsj", "native"):
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
    expected = crop.apply_coords(resize.apply_coords(points.copy()))
    np.testing.assert_array_equal(both.apply_coords(points.copy()), expected)


def test_jitter_is_that_of_detectron2(data_dir: Path) -> None:
    """Images and masks of real images are those of Detectron2's transforms, each applied to all of the picture."""
    records, *_ = coco_panoptic(data_dir, 20)
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
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (100, 100), 100
        mapper = TrainMapper.from_config(cfg)
        np.random.seed(1)
        cropped = [mapper(record)["instances"] for _ in range(60)]
        assert {instances.gt_masks.shape[1:] for instances in cropped} == {(10, 10)}
        assert all(instances.gt_masks.flatten(1).any(1).all() for instances in cropped)
        seen = {tuple(instances.gt_classes.tolist()) for instances in cropped}
        assert {(), (0,), (2,)} <= seen and (0, 2) not in seen


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


@pytest.mark.golden
def test_golden_squares(golden_dir: Path) -> None:
    """Images and maps of ids as LDMSeg's published data set makes them; its ids are drawn, so they are given here."""
    golden = load_file(golden_dir / "ldmseg_inputs.safetensors")
    cfg = config("panoptic", "square")
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.RANDOM_FLIP = golden["config.size"].item(), "none"
    for name in sorted({key.rpartition(".")[0] for key in golden} - {"config"}):
        case = {key.rpartition(".")[2]: x for key, x in golden.items() if key.startswith(f"{name}.")}
        build = train_augmentations if name.startswith("train") else inference_augmentations
        augmented = T.AugInput(case["image"].numpy(), sem_seg=case["panoptic"].numpy())
        T.AugmentationList(build(cfg))(augmented)
        image, picture = (x[:, ::-1] if case["flipped"] else x for x in (augmented.image, augmented.sem_seg))
        expected = case["resized_image"].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(image / 255, expected if expected.min() >= 0 else (expected + 1) / 2, atol=1e-6)
        ids = torch.zeros(picture.shape[:2], dtype=torch.int64)
        for kept, drawn in zip(case["kept_ids"].tolist(), case["drawn_ids"].tolist(), strict=True):
            ids[torch.from_numpy(rgb2id(picture) == kept)] = drawn
        assert torch.equal(ids, case["ids"])
        assert torch.equal(int_to_bits(ids, golden["config.num_bits"].item(), void=0), case["bits"])


def test_native_scale_is_that_of_the_image() -> None:
    cfg = config("instance", "native")
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, cfg.INPUT.SCALE_TEST, cfg.INPUT.RANDOM_FLIP = 2.0, 2.0, 1.5, "none"
    image = np.arange(50 * 80, dtype=np.uint8).reshape(50, 80, 1).repeat(3, 2)
    for augmentations, size in ((train_augmentations(cfg), (64, 64)), (inference_augmentations(cfg), (75, 120))):
        augmented = T.AugInput(image)
        T.AugmentationList(augmentations)(augmented)
        assert augmented.image.shape[:2] == size


def test_rotation_has_eight_orientations() -> None:
    cfg, image = config("instance", "resize"), np.zeros((8, 8, 3), np.uint8)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = "rotate", (8, 8)
    image[1, 2] = 255
    np.random.seed(0)
    places = set()
    for _ in range(60):
        augmented = T.AugInput(image)
        T.AugmentationList(train_augmentations(cfg))(augmented)
        places.add(tuple(np.argwhere(augmented.image[:, :, 0] > 0)[0].tolist()))
    assert len(places) == 8
