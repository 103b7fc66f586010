"""ADE20K for panoptic and instance segmentation, in the files that the published Mask2Former prepares.

Detectron2 itself has the semantic labels only (`ade20k_sem_seg_train`, `ade20k_sem_seg_val`). The 150 classes are the
same: of these, 100 are things (https://github.com/CSAILVision/placeschallenge).
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_panoptic
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

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
    for split, images in (("train", "training"), ("val", "validation")):
        image_root = os.path.join(folder, "images", images)
        instances = os.path.join(folder, f"ade20k_instance_{split}.json")
        panoptic = {
            "thing_classes": CLASSES,
            "stuff_classes": CLASSES,
            "thing_dataset_id_to_contiguous_id": {index: index for index in THINGS},
            "stuff_dataset_id_to_contiguous_id": {index: index for index in STUFF},
            "sem_seg_root": os.path.join(folder, "annotations_detectron2", images),
        }
        panoptic_root = os.path.join(folder, f"ade20k_panoptic_{split}")
        register_coco_panoptic(
            f"ade20k_panoptic_{split}", panoptic, image_root, panoptic_root, f"{panoptic_root}.json", instances
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


def _load_instances(json_file: str, image_root: str) -> list[dict[str, Any]]:
    # Detectron2's own renumbering would take the names from the file, whose spelling differs between preparations.
    records = load_coco_json(json_file, image_root)
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = THINGS.index(annotation["category_id"])
    return records
