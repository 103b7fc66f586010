"""Records of real and of made-up images, and configs that map them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as rle

from dformer.d2.config import get_cfg
from dformer.d2.data.mappers import TrainMapper
from dformer.data.annotations import annotation_reader

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
    """A record whose image is white on the first region and black elsewhere.

    `ids` (H, W) are the region of each pixel, 0 is void; `classes` are those of the regions; the forms are the keys of
    `TASK_OF_FORM`, where polygons are the regions' boxes.
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


def coco_panoptic(data_dir: Path, count: int) -> tuple[list[Record], dict, Any]:
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
