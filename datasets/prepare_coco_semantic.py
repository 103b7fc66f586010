"""Semantic labels from COCO's panoptic annotations, in the layouts of Detectron2 and the published Mask2Former.

    <root>/coco/annotations/panoptic_{train,val}2017.json                              as published
    <root>/coco/panoptic_{train,val}2017/*.png                                         as published
    <root>/coco/panoptic_stuff_{train,val}2017/*.png       written here, as Detectron2: 0 things, 1-53 stuff, 255 void
    <root>/coco/panoptic_semseg_{train,val}2017/*.png      written here, as Mask2Former: 0-132 all classes, 255 void

dformer itself needs neither: it reads labels from the panoptic PNGs. Detectron2's `coco_2017_*_panoptic_separated` and
`_stuffonly`, and other repositories, do. A folder appears when it is complete.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import rgb2id
from PIL import Image

from dformer.data.images import read_panoptic_png
from dformer.data.panoptic import paint_classes
from dformer.data.prepare import run_script
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import atomic_folder, read_json
from dformer.utils.processes import parallel_map

VOID = 255
_STUFF_IDS = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]
# name of the folder -> category id -> label
LAYOUTS = {
    "panoptic_stuff": {c["id"]: 0 if c["isthing"] else 1 + _STUFF_IDS.index(c["id"]) for c in COCO_CATEGORIES},
    "panoptic_semseg": {c["id"]: k for k, c in enumerate(COCO_CATEGORIES)},
}


def prepare(root: str | Path, progress: bool = True) -> list[Path]:
    """Prepare both layouts of the splits that are there; return the folders.

    Raises:
        UserError: no panoptic annotations are there, or json and PNGs contradict each other.
    """
    folder = Path(root) / "coco"
    splits = [s for s in ("val2017", "train2017") if (folder / "annotations" / f"panoptic_{s}.json").exists()]
    if not splits:
        raise UserError(
            f"there is no panoptic_val2017.json or panoptic_train2017.json in {(folder / 'annotations').absolute()}; "
            "put COCO there (datasets/README.md), or set --root"
        )
    written = []
    for split in splits:
        content = read_json(folder / "annotations" / f"panoptic_{split}.json")
        annotations = {a["file_name"]: a["segments_info"] for a in content["annotations"]}
        for layout, labels in LAYOUTS.items():
            target = folder / f"{layout}_{split}"
            if annotations.keys() != {file.name for file in target.glob("*.png")}:
                with atomic_folder(target) as new:
                    work = partial(_prepare_file, folder / f"panoptic_{split}", new, annotations, labels)
                    parallel_map(work, list(annotations), f"{layout}_{split}" if progress else None)
            written.append(target)
    return written


def _prepare_file(
    source: Path, target: Path, annotations: Mapping[str, list[dict[str, Any]]], labels: Mapping[int, int], name: str
) -> None:
    ids = rgb2id(read_panoptic_png(source / name))
    categories = {s["id"]: s["category_id"] for s in annotations[name]}
    unknown = sorted(set(categories.values()) - labels.keys())
    if unknown:
        raise UserError(f"{source / name}: its json names the category {unknown[0]}, which is not one of COCO's")
    if set(np.unique(ids).tolist()) - {0} != categories.keys():
        raise UserError(f"{source / name} and its json name different segments; are they of the same download?")
    painted = paint_classes(ids, {i: labels[category] for i, category in categories.items()}, VOID)
    Image.fromarray(painted).save(target / name)


@exit_on_user_error
def main() -> None:
    run_script(prepare, "Prepare semantic labels from COCO's panoptic annotations.")


if __name__ == "__main__":
    main()
