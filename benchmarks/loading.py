#!/usr/bin/env python3
"""Training images a second and core: our mapper beside the same pipeline of Detectron2's own parts, in turns.

DETECTRON2_DATASETS=folder python benchmarks/loading.py [--dataset coco_2017_train_panoptic] [--images 80] [--json FILE]

Both make of the same files and random numbers the same images and masks (checked): large-scale jitter at 1024 x 1024,
a mask for each segment. Our models take no boxes, so our mapper makes none. Time is the processor's, in one thread.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from measure import environment, medians, parser, report
from panopticapi.utils import rgb2id

from dformer.d2.config import get_cfg
from dformer.d2.data import TrainMapper, check_datasets
from dformer.utils.errors import exit_on_user_error

SIZE, SCALES = 1024, (0.1, 2.0)
Record = dict[str, Any]
Mapper = Callable[[Record], Record]


def detectron2_mapper() -> Mapper:
    """Return what Mask2Former's mappers do: transform image and panoptic PNG, then take a mask for each segment."""
    augmentations = [
        T.ResizeScale(*SCALES, SIZE, SIZE),
        T.RandomCrop("absolute", (SIZE, SIZE)),
        T.RandomFlip(),
        T.FixedSizeCrop((SIZE, SIZE)),  # pads
    ]

    def read(record: Record) -> Record:
        augmented = T.AugInput(detection_utils.read_image(record["file_name"], "RGB"))
        transforms = T.AugmentationList(augmentations)(augmented)
        ids = rgb2id(transforms.apply_segmentation(detection_utils.read_image(record["pan_seg_file_name"], "RGB")))
        segments = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
        masks = [torch.from_numpy(ids == segment["id"]) for segment in segments]
        instances = Instances((SIZE, SIZE))
        instances.gt_classes = torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64)
        bits = BitMasks(torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE))
        instances.gt_masks, instances.gt_boxes = bits.tensor, bits.get_bounding_boxes()
        image = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": image, "instances": instances}

    return read


def seconds(mapper: Mapper, records: list[Record]) -> float:
    """Return the processor's time for an image, with the same random numbers at each call."""
    start = time.process_time()
    for index, record in enumerate(records):
        np.random.seed(index)
        mapper(record)
    return (time.process_time() - start) / len(records)


@exit_on_user_error
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dataset", default="coco_2017_train_panoptic", help="a registered panoptic data set")
    options.add_argument("--images", type=int, default=80, help="how many of it")
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    torch.set_num_threads(1)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.CHECK_IMAGES = (args.dataset,), 0
    cfg.INPUT.IMAGE_SIZE, (cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) = SIZE, SCALES
    check_datasets(cfg, test=False)
    records = get_detection_dataset_dicts(args.dataset, filter_empty=False)[: args.images]
    mappers: dict[str, Mapper] = {"dformer": TrainMapper.from_config(cfg), "detectron2": detectron2_mapper()}
    for index, record in enumerate(records):
        items = []
        for mapper in mappers.values():
            np.random.seed(index)
            items.append(mapper(record))
        ours, theirs = (item["instances"] for item in items)
        theirs = theirs[theirs.gt_masks.flatten(1).any(1)]  # ours has no segments outside of the crop
        assert torch.equal(items[0]["image"], items[1]["image"])
        assert torch.equal(ours.gt_classes, theirs.gt_classes) and torch.equal(ours.gt_masks, theirs.gt_masks)
    times = medians({name: partial(seconds, mapper, records) for name, mapper in mappers.items()}, args.rounds)
    rates = {name: 1 / value for name, value in times.items()}
    rows = [
        {"mapper": name, "images_per_second_and_core": rate, "x detectron2": rate / rates["detectron2"]}
        for name, rate in rates.items()
    ]
    about = environment("cpu") | {"dataset": args.dataset, "images": len(records), "rounds": args.rounds}
    report(rows, about, args.json)


if __name__ == "__main__":
    main()
