"""ADE20K's semantic and instance annotations, combined as the published Mask2Former's `ade20k_panoptic_*` expect them.

    <root>/ADEChallengeData2016/images/{training,validation}/*.jpg                     as published
    <root>/ADEChallengeData2016/annotations/{training,validation}/*.png                as published
    <root>/ADEChallengeData2016/annotations_instance/{training,validation}/*.png       as published
    <root>/ADEChallengeData2016/ade20k_panoptic_{train,val}/*.png                      written here: segment ids
    <root>/ADEChallengeData2016/ade20k_panoptic_{train,val}.json                       written here: segments

Things cover stuff, as published; pixels of a thing class without an instance are void. Category ids are class ids, 0 to
149; image ids are names. Unlike in the published files, areas and boxes are those of the visible pixels, and stuff
without any is not listed. A split appears when it is complete.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image

from dformer.d2.data.ade20k import CLASSES, THINGS, read_ade20k_instances
from dformer.data.images import read_labels, read_size
from dformer.data.prepare import ade20k_names, run_script
from dformer.data.segmentations import area_and_box, encode_mask
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import atomic_folder, write_json
from dformer.utils.processes import parallel_map

SPLITS = {"train": "training", "val": "validation"}


def prepare(root: str | Path, progress: bool = True) -> list[Path]:
    """Prepare both splits; return the json files.

    Raises:
        UserError: files are missing, or one is not ADE20K's.
    """
    folder = Path(root) / "ADEChallengeData2016"
    written = []
    for split, images in SPLITS.items():
        pngs, target = folder / f"ade20k_panoptic_{split}", folder / f"ade20k_panoptic_{split}.json"
        names = ade20k_names(folder, images, "annotations", "annotations_instance")
        if not target.exists() or {f"{name}.png" for name in names} != {file.name for file in pngs.glob("*.png")}:
            target.unlink(missing_ok=True)  # it belongs to the PNGs that are replaced
            what = f"ADE20K panoptic, {split}" if progress else None
            with atomic_folder(pngs) as new:
                found = parallel_map(partial(_prepare_image, folder, images, new), names, what)
            content = {
                "images": [image for image, _ in found],
                "annotations": [annotation for _, annotation in found],
                "categories": [{"id": i, "name": n, "isthing": int(i in THINGS)} for i, n in enumerate(CLASSES)],
            }
            write_json(target, content)
        written.append(target)
    return written


def _prepare_image(folder: Path, split: str, pngs: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the PNG; return the entries of image and annotation."""
    height, width = read_size(folder / "images" / split / f"{name}.jpg")
    semantic = folder / "annotations" / split / f"{name}.png"
    labels = read_labels(semantic).astype(np.int64) - 1
    if labels.shape != (height, width) or labels.max() >= len(CLASSES):
        raise UserError(
            f"{semantic} is not the label map of its image: it is {labels.shape[1]} x {labels.shape[0]} pixels with "
            f"values up to {labels.max() + 1}, the image {width} x {height}, and values are 0 to {len(CLASSES)}"
        )
    segments = [(k, labels == k) for k in np.unique(labels).tolist() if k >= 0 and k not in THINGS]
    segments += read_ade20k_instances(folder / "annotations_instance" / split / f"{name}.png", (height, width))
    ids = np.zeros((height, width), np.int64)
    for segment_id, (_, mask) in enumerate(segments, start=1):
        ids[mask] = segment_id
    info = []
    for segment_id, (category, _) in enumerate(segments, start=1):
        measures = area_and_box(encode_mask(ids == segment_id))
        if measures["area"]:
            info.append({"id": segment_id, "category_id": category, **measures, "iscrowd": 0})
    Image.fromarray(id2rgb(ids)).save(pngs / f"{name}.png")
    image = {"id": name, "file_name": f"{name}.jpg", "height": height, "width": width}
    return image, {"image_id": name, "file_name": f"{name}.png", "segments_info": info}


@exit_on_user_error
def main() -> None:
    run_script(prepare, "Prepare ADE20K for panoptic segmentation.")


if __name__ == "__main__":
    main()
