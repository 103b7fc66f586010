"""ADE20K for panoptic and instance segmentation, in the files that the published Mask2Former prepares.

Detectron2 itself has the semantic labels only (`ade20k_sem_seg_train`, `ade20k_sem_seg_val`). The 150 classes are the
same: of these, 100 are things (https://github.com/CSAILVision/placeschallenge).
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from numpy.typing import NDArray

from dformer.data.forms import class_metadata
from dformer.data.images import read_panoptic_png
from dformer.utils.errors import UserError
from dformer.utils.files import read_json

CLASSES = [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES]  # by class id; the label in the PNG files is one more

# fmt: off
STUFF = (
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
)
# fmt: on
THINGS = tuple(index for index in range(len(CLASSES)) if index not in STUFF)


def register_ade20k(root: str | Path) -> None:
    """Register `ade20k_panoptic_{train,val}` (150 classes) and `ade20k_instance_{train,val}` (the 100 things).

    Category ids in the json files are class ids, 0 to 149, in both.
    """
    folder = os.path.join(root, "ADEChallengeData2016")
    classes = class_metadata([{"id": k, "name": name, "isthing": k in THINGS} for k, name in enumerate(CLASSES)])
    for split, images in (("train", "training"), ("val", "validation")):
        image_root = os.path.join(folder, "images", images)
        instances = os.path.join(folder, f"ade20k_instance_{split}.json")
        panoptic_root = os.path.join(folder, f"ade20k_panoptic_{split}")
        name = f"ade20k_panoptic_{split}"
        DatasetCatalog.register(name, partial(_load_panoptic, f"{panoptic_root}.json", image_root, panoptic_root))
        MetadataCatalog.get(name).set(
            **classes,
            panoptic_root=panoptic_root,
            image_root=image_root,
            sem_seg_root=os.path.join(folder, "annotations_detectron2", images),
            panoptic_json=f"{panoptic_root}.json",
            json_file=instances,
            evaluator_type="ade20k_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
        )
        name = f"ade20k_instance_{split}"
        DatasetCatalog.register(name, partial(_load_instances, instances, image_root))
        MetadataCatalog.get(name).set(
            thing_classes=[CLASSES[index] for index in THINGS],
            thing_dataset_id_to_contiguous_id={index: k for k, index in enumerate(THINGS)},
            json_file=instances,
            image_root=image_root,
            evaluator_type="coco",
        )


def _load_panoptic(json_file: str, image_root: str, png_root: str) -> list[dict[str, Any]]:
    # Detectron2's own loader wants integers as image ids; here they are names.
    return [
        {
            "file_name": os.path.join(image_root, f"{annotation['image_id']}.jpg"),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": os.path.join(png_root, annotation["file_name"]),
            "segments_info": [{**s, "isthing": s["category_id"] in THINGS} for s in annotation["segments_info"]],
        }
        for annotation in read_json(json_file)["annotations"]
    ]


def _load_instances(json_file: str, image_root: str) -> list[dict[str, Any]]:
    # Detectron2's own renumbering would take the names from the file, whose spelling differs between preparations.
    records = load_coco_json(json_file, image_root)
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = THINGS.index(annotation["category_id"])
    return records


def read_ade20k_instances(file: str | Path, size: tuple[int, int]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Read the instances of a PNG of `annotations_instance`: class id (0 to 149) and mask (H, W) of each.

    Red is the number of the thing class, 1 to 100; green the id of the instance, 0 where there is none.

    Raises:
        UserError: the file is missing or not of this kind, or not of `size`, the image's height and width.
    """
    picture = read_panoptic_png(file)
    if picture.shape[:2] != size:
        raise UserError(f"{file} is {picture.shape[1]} x {picture.shape[0]}, its image {size[1]} x {size[0]} pixels")
    categories, ids = picture[:, :, 0], picture[:, :, 1]
    instances = []
    for k in np.unique(ids[ids > 0]).tolist():
        mask = ids == k
        found = np.unique(categories[mask]).tolist()
        if len(found) != 1 or not 1 <= found[0] <= len(THINGS):
            raise UserError(f"{file}: instance {k} should be of one class, 1 to {len(THINGS)}, but has {found}")
        instances.append((THINGS[found[0] - 1], mask))
    return instances
