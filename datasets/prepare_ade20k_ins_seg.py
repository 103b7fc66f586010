"""ADE20K's instance annotations as the published Mask2Former's `ade20k_instance_*` expect them: COCO's json, RLE.

    <root>/ADEChallengeData2016/images/{training,validation}/*.jpg                     as published
    <root>/ADEChallengeData2016/annotations_instance/{training,validation}/*.png       as published
    <root>/ADEChallengeData2016/ade20k_instance_{train,val}.json                       written here

Category ids are class ids, 0 to 149, of the 100 classes that are things; image ids are names.
"""

from functools import partial
from pathlib import Path
from typing import Any

from dformer.d2.data.ade20k import CLASSES, THINGS, read_ade20k_instances
from dformer.data.images import read_size
from dformer.data.prepare import ade20k_names, run_script
from dformer.data.segmentations import area_and_box, encode_mask, json_rle
from dformer.utils.errors import exit_on_user_error
from dformer.utils.files import read_json, write_json
from dformer.utils.processes import parallel_map

SPLITS = {"train": "training", "val": "validation"}


def prepare(root: str | Path, progress: bool = True) -> list[Path]:
    """Prepare both splits; return the files.

    Raises:
        UserError: files are missing, or one is not ADE20K's.
    """
    folder = Path(root) / "ADEChallengeData2016"
    written = []
    for split, images in SPLITS.items():
        target = folder / f"ade20k_instance_{split}.json"
        names = ade20k_names(folder, images, "annotations_instance")
        if not _is_there(target, names):
            work = partial(_prepare_image, folder / "images" / images, folder / "annotations_instance" / images)
            found = parallel_map(work, names, f"ADE20K instances, {split}" if progress else None)
            annotations = [a for image in found for a in image["annotations"]]
            content = {
                "images": [image["image"] for image in found],
                "annotations": [{"id": i, **a} for i, a in enumerate(annotations, start=1)],
                "categories": [{"id": i, "name": CLASSES[i]} for i in THINGS],
            }
            write_json(target, content)
        written.append(target)
    return written


def _is_there(target: Path, names: list[str]) -> bool:
    return target.exists() and [image["id"] for image in read_json(target)["images"]] == names


def _prepare_image(images: Path, instances: Path, name: str) -> dict[str, Any]:
    """The entries of an image: {"image", "annotations"}."""
    height, width = read_size(images / f"{name}.jpg")
    annotations = []
    for category, mask in read_ade20k_instances(instances / f"{name}.png", (height, width)):
        encoded = encode_mask(mask)
        common = {"image_id": name, "category_id": category, "iscrowd": 0, **area_and_box(encoded)}
        annotations.append({**common, "segmentation": json_rle(encoded)})
    image = {"id": name, "file_name": f"{name}.jpg", "height": height, "width": width}
    return {"image": image, "annotations": annotations}


@exit_on_user_error
def main() -> None:
    run_script(prepare, "Prepare ADE20K for instance segmentation.")


if __name__ == "__main__":
    main()
