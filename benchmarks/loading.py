#!/usr/bin/env python3
"""Training images a second and core: our mapper beside the same pipeline of Detectron2's own parts, in turns.

DETECTRON2_DATASETS=folder python benchmarks/loading.py [--dataset coco_2017_train_panoptic] [--images 80] [--json FILE]

Both make of the same files and random numbers the same images, masks and boxes (checked): large-scale jitter at
1024 x 1024, a mask a segment. Our models take no boxes, so that our mapper makes none; a second row adds them. Time is
that of the processor, in one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from measure import write
from panopticapi.utils import rgb2id
from tabulate import tabulate

from dformer.d2.config import get_cfg
from dformer.d2.data import TrainMapper, check_datasets
from dformer.postprocess.queries import boxes_of
from dformer.utils.env import cpu_model
from dformer.utils.errors import exit_on_user_error

SIZE, SCALES = 1024, (0.1, 2.0)
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def plain_mapper() -> Mapper:
    """As Mask2Former's mappers for Detectron2 do it: transform image and panoptic PNG, then take a mask a segment."""
    augmentations = [
        T.ResizeScale(*SCALES, SIZE, SIZE),
        T.RandomCrop("absolute", (SIZE, SIZE)),
        T.RandomFlip(),
        T.FixedSizeCrop((SIZE, SIZE)),  # pads
    ]

    def read(record: dict[str, Any]) -> dict[str, Any]:
        augmented = T.AugInput(detection_utils.read_image(record["file_name"], "RGB"))
        transforms = T.AugmentationList(augmentations)(augmented)
        picture = transforms.apply_segmentation(detection_utils.read_image(record["pan_seg_file_name"], "RGB"))
        ids = rgb2id(picture)
        segments = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
        masks = [torch.from_numpy(ids == segment["id"]) for segment in segments]
        instances = Instances((SIZE, SIZE))
        instances.gt_classes = torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64)
        bits = BitMasks(torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE))
        instances.gt_masks, instances.gt_boxes = bits.tensor, bits.get_bounding_boxes()
        image = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": image, "instances": instances}

    return read


def our_mapper(dataset: str) -> Mapper:
    """Ours, for this data set."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.INPUT.IMAGE_SIZE, (cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) = SIZE, SCALES
    return TrainMapper.from_config(cfg)


def with_boxes(mapper: Mapper) -> Mapper:
    """The mapper, with the boxes of its masks."""

    def read(record: dict[str, Any]) -> dict[str, Any]:
        item = mapper(record)
        item["instances"].gt_boxes = Boxes(boxes_of(item["instances"].gt_masks))
        return item

    return read


def check(ours: dict[str, Any], plain: dict[str, Any]) -> None:
    """That both are the same, but for segments that the crop dropped, which are empty in the plain one."""
    mine, theirs = ours["instances"], plain["instances"]
    theirs = theirs[theirs.gt_masks.flatten(1).any(1)]
    assert torch.equal(ours["image"], plain["image"])
    assert torch.equal(mine.gt_classes, theirs.gt_classes)
    assert torch.equal(mine.gt_masks, theirs.gt_masks)
    assert torch.equal(mine.gt_boxes.tensor, theirs.gt_boxes.tensor)


@exit_on_user_error
def main() -> None:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="coco_2017_train_panoptic", help="a registered panoptic data set")
    parser.add_argument("--images", type=int, default=80, help="how many of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.CHECK_IMAGES = (args.dataset,), 0
    check_datasets(cfg, test=False)
    records = get_detection_dataset_dicts(args.dataset, filter_empty=False)[: args.images]
    ours = our_mapper(args.dataset)
    mappers = {"dformer": ours, "dformer, boxes": with_boxes(ours), "detectron2, boxes": plain_mapper()}
    seconds: dict[str, list[float]] = {name: [] for name in mappers}
    for round_ in range(args.rounds):
        spent = dict.fromkeys(mappers, 0.0)
        for index, record in enumerate(records):
            items = {}
            for name, mapper in mappers.items():
                np.random.seed(round_ * len(records) + index)
                start = time.process_time()
                items[name] = mapper(record)
                spent[name] += time.process_time() - start
            check(items["dformer, boxes"], items["detectron2, boxes"])
        for name, total in spent.items():
            seconds[name].append(total / len(records))
    rates = {name: 1 / median(values) for name, values in seconds.items()}
    rows = [
        {
            "mapper": name,
            "images_per_second_and_core": round(rate, 2),
            "x detectron2": round(rate / rates["detectron2, boxes"], 2),
        }
        for name, rate in rates.items()
    ]
    print(f"{cpu_model()}; {len(records)} images of {args.dataset}, {args.rounds} rounds\n")
    print(tabulate(rows, headers="keys", tablefmt="pipe"))
    if args.json:
        write(args.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
