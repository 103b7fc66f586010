"""A record of a data set -> the model's input. The task decides how annotations are read, the augmentation how images
are varied, the target what the model gets of the annotation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray

from dformer.d2.data.augmentations import Augmentations, test_augmentations, train_augmentations
from dformer.d2.data.datasets import get_metadata, num_classes
from dformer.data.annotations import Annotation, annotation_reader
from dformer.data.images import read_image
from dformer.data.panoptic import paint_masks
from dformer.data.types import Record, Size
from dformer.data.video import number_pictures
from dformer.utils.errors import UserError, did_you_mean

PAD_VALUE = 128  # of images, 0..255
TARGETS = ("masks", "boxes", "panoptic_map")


@dataclass
class TestMapper:
    """Read and resize an image; `image_format` is "RGB" or "BGR".

    Returns, for a record:
        file_name, image_id; height, width: of the file; image: uint8 (3, h, w), resized.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    augmentations: Augmentations
    image_format: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TestMapper":
        """Build the mapper for `cfg.INPUT`."""
        return cls(test_augmentations(cfg), cfg.INPUT.FORMAT)

    def __call__(self, record: Record) -> dict[str, Any]:
        """Return the model's input of a record."""
        image = _read_checked(record, self.image_format)
        augmented = T.AugInput(image)
        T.AugmentationList(self.augmentations)(augmented)
        return {**_identity(record, image), "image": _to_tensor(augmented.image, _size(augmented.image))}


@dataclass
class TrainMapper:
    """Read an image and its annotation and augment both.

    Args:
        augmentations: applied to image and annotation.
        read_annotation: of a task, see `annotation_reader`.
        image_format: "RGB" or "BGR".
        pad_to: pad smaller images at the right and the bottom to this height and width; None: leave them.
        needs_labels: whether an augmentation asks for the class of each pixel (`sem_seg`).
        target: one of `TARGETS`.

    Returns, for a record:
        file_name, image_id; height, width: of the file; image: uint8 (3, h, w); instances: `Instances` of (h, w) with
        gt_classes int64 (G,); G may be 0. Objects without a pixel are dropped. Beside these, by `target`:
        "masks": instances.gt_masks bool (G, h, w); of frames of videos also gt_tracks int64 (G,), the objects' numbers
        in the video, 0 for stuff.
        "boxes": instances.gt_masks, and gt_boxes, `Boxes` (G, 4) tight around them: x0, y0, x1, y1, the last two
        exclusive.
        "panoptic_map": int64 (h, w), 0 where nothing is annotated and k + 1 in object k of the instances, smaller
        objects over larger ones. With the record's `past` frames also past_maps, int64 (F, h, w), the same of these.

    Raises:
        UserError: `target` is unknown.
    """

    augmentations: Augmentations
    read_annotation: Callable[[Record, Size], Annotation]
    image_format: str
    pad_to: int | None = None
    needs_labels: bool = False
    target: str = "masks"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            nearest = did_you_mean(self.target, TARGETS)
            raise UserError(f'INPUT.TARGET is "{self.target}"{nearest} (choose one of {", ".join(TARGETS)})')

    @classmethod
    def for_test(cls, cfg: CfgNode) -> "TrainMapper":
        """Build the mapper that augments as for inference and delivers the targets, too."""
        mapper, augmentations = cls.from_config(cfg), test_augmentations(cfg)
        return replace(mapper, augmentations=augmentations, pad_to=None, needs_labels=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TrainMapper":
        """Build the mapper for `cfg.DATASETS.TRAIN`, `cfg.INPUT` and `cfg.MODEL.NUM_CLASSES`."""
        name, task = cfg.DATASETS.TRAIN[0], cfg.INPUT.TASK
        classes = cfg.MODEL.NUM_CLASSES or num_classes(name, task)
        ignore_label = get_metadata(name).get("ignore_label", 255)
        return cls(
            train_augmentations(cfg, ignore_label),
            annotation_reader(task, classes, ignore_label),
            cfg.INPUT.FORMAT,
            pad_to=cfg.INPUT.IMAGE_SIZE if cfg.INPUT.AUGMENTATION in ("lsj", "native") else None,
            needs_labels=cfg.INPUT.AUGMENTATION == "crop" and cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA < 1,
            target=cfg.INPUT.TARGET,
        )

    def __call__(self, record: Record) -> dict[str, Any]:
        """Return the model's input of a record, with its targets."""
        original = _read_checked(record, self.image_format)
        annotation = self.read_annotation(record, _size(original))
        augmented = T.AugInput(original, sem_seg=annotation.class_labels() if self.needs_labels else None)
        transforms = T.AugmentationList(self.augmentations)(augmented)
        size = _size(augmented.image)
        padded = size if self.pad_to is None else (self.pad_to, self.pad_to)
        classes, masks, tracks = annotation.targets(transforms, size, padded)
        image = _to_tensor(augmented.image, padded)
        targets = self._targets(torch.tensor(classes, dtype=torch.int64), masks, padded)
        if self.target == "masks" and "video_id" in record:
            targets["instances"].gt_tracks = torch.tensor(tracks, dtype=torch.int64)
        if "past" in record:
            pictures = [transforms.apply_segmentation(each) for each in number_pictures(record, record["past"])]
            targets["past_maps"] = _past_maps(pictures, targets["panoptic_map"])
        return {**_identity(record, original), "image": image, **targets}

    def _targets(self, classes: torch.Tensor, masks: torch.Tensor, size: Size) -> dict[str, Any]:
        if self.target == "panoptic_map":
            panoptic_map, visible = map(torch.from_numpy, paint_masks(masks.numpy()))
            return {"instances": Instances(size, gt_classes=classes[visible]), "panoptic_map": panoptic_map}
        instances = Instances(size, gt_classes=classes, gt_masks=masks)
        if self.target == "boxes":
            instances.gt_boxes = BitMasks(masks).get_bounding_boxes()
        return {"instances": instances}


def _read_checked(record: Record, image_format: str) -> NDArray[np.uint8]:
    """The image of a record, if it has the size in the record, or there is none."""
    image = read_image(record["file_name"], image_format)
    height, width = image.shape[:2]
    expected = record.get("height", height), record.get("width", width)
    if expected != (height, width):
        raise UserError(
            f"image {record['file_name']} is {width} x {height} pixels (its EXIF orientation applied), but the json of "
            f"its data set says {expected[1]} x {expected[0]}; correct the json or the image"
        )
    return image


def _size(image: NDArray[np.uint8]) -> Size:
    return image.shape[0], image.shape[1]


def _identity(record: Record, image: NDArray[np.uint8]) -> dict[str, Any]:
    file_name = record["file_name"]
    # Detectron2 0.5 gives semantic sets no image id.
    image_id = record.get("image_id", Path(file_name).stem)
    place = {key: record[key] for key in ("video_id", "frame") if key in record}
    return {"file_name": file_name, "image_id": image_id, "height": image.shape[0], "width": image.shape[1], **place}


def _past_maps(pictures: list[NDArray[np.uint8]], panoptic_map: torch.Tensor) -> torch.Tensor:
    """The past pictures, which follow that of the frame, with the numbers of the frame's panoptic map (h, w)."""
    current, height, width = pictures[0], *pictures[0].shape
    numbers = torch.zeros(256, dtype=torch.int64)
    numbers[torch.from_numpy(current.astype(np.int64))] = panoptic_map[:height, :width]
    numbers[0] = 0
    maps = torch.zeros(len(pictures) - 1, *panoptic_map.shape, dtype=torch.int64)
    for past, picture in zip(maps, pictures[1:], strict=True):
        past[:height, :width] = numbers[torch.from_numpy(picture.astype(np.int64))]
    return maps


def _to_tensor(image: NDArray[np.uint8], padded: Size) -> torch.Tensor:
    """(h, w, 3) -> (3, *padded), the image in the upper left corner."""
    pixels = np.full((3, *padded), PAD_VALUE, np.uint8)
    pixels[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return torch.from_numpy(pixels)
