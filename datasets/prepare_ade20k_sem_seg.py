"""ADE20K's scene-parsing labels as Detectron2's `ade20k_sem_seg_*` expect them.

The published PNGs have 0 for void and 1 to 150 for the classes. This writes 255 for void and 0 to 149 for the classes:

    <root>/ADEChallengeData2016/annotations/{training,validation}/*.png                as published
    <root>/ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png     written here

A split appears when it is complete.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dformer.data.images import read_labels
from dformer.data.prepare import run_script
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import atomic_folder
from dformer.utils.processes import parallel_map

NUM_CLASSES = 150


def prepare(root: str | Path, progress: bool = True) -> list[Path]:
    """Prepare both splits; return their folders.

    Raises:
        UserError: no labels are there, or a file is not one of ADE20K's.
    """
    folder = Path(root) / "ADEChallengeData2016"
    written = []
    for split in ("training", "validation"):
        source, target = folder / "annotations" / split, folder / "annotations_detectron2" / split
        names = sorted(file.name for file in source.glob("*.png"))
        if not names:
            raise UserError(
                f"there are no PNGs in {source.absolute()}; put ADE20K there (datasets/README.md), or set --root"
            )
        if set(names) != {file.name for file in target.glob("*.png")}:
            with atomic_folder(target) as new:
                parallel_map(partial(_prepare_file, source, new), names, f"ADE20K {split}" if progress else None)
        written.append(target)
    return written


def _prepare_file(source: Path, target: Path, name: str) -> None:
    labels = read_labels(source / name)
    if labels.max() > NUM_CLASSES:
        raise UserError(
            f"{source / name} is not a label map of ADE20K, whose values are 0 to {NUM_CLASSES}: its largest value is "
            f"{labels.max()}"
        )
    Image.fromarray(labels.astype(np.uint8) - np.uint8(1)).save(target / name)  # 0 wraps around to 255


@exit_on_user_error
def main() -> None:
    run_script(prepare, "Prepare ADE20K's labels for semantic segmentation with Detectron2.")


if __name__ == "__main__":
    main()
