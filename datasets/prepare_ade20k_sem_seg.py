"""ADE20K's scene-parsing labels as Detectron2's `ade20k_sem_seg_*` expect them.

The published PNGs have 0 for void and 1 to 150 for the classes. This writes 255 for void and 0 to 149 for the classes:

    <root>/ADEChallengeData2016/annotations/{training,validation}/*.png                as published
    <root>/ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png     written here

A split appears in its place when it is whole. Until then it is in a folder beside it whose name ends in ".partial", and
the next call goes on with that.
"""

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dformer.errors import UserError, exit_on_user_error

NUM_CLASSES = 150


def prepare(root: str | Path, progress: bool = True) -> Path:
    """Prepare both splits; return the folder written.

    Raises:
        UserError: no labels are there, or a file is not one of ADE20K's.
    """
    folder = Path(root) / "ADEChallengeData2016"
    for split in ("training", "validation"):
        source, target = folder / "annotations" / split, folder / "annotations_detectron2" / split
        files = sorted(source.glob("*.png"))
        if not files:
            raise UserError(
                f"there are no PNGs in {source.absolute()}; put ADE20K there (datasets/README.md), or set --root"
            )
        if {f.name for f in files} == {f.name for f in target.glob("*.png")}:
            continue
        partial = target.with_name(target.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for file in tqdm(files, desc=f"ADE20K {split}", unit="file", disable=not progress):
            if not (partial / file.name).exists():
                _prepare_file(file, partial / file.name)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    return folder / "annotations_detectron2"


def _prepare_file(source: Path, target: Path) -> None:
    try:
        with Image.open(source) as picture:
            mode, labels = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    if mode not in ("L", "P") or labels.max() > NUM_CLASSES:
        raise UserError(
            f"{source} is not a label map of ADE20K (grey, values 0 to {NUM_CLASSES}): mode {mode}, largest value "
            f"{labels.max()}"
        )
    written = target.with_suffix(".tmp")
    Image.fromarray(labels.astype(np.uint8) - np.uint8(1)).save(written, format="PNG")  # 0 wraps around to 255
    written.replace(target)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare ADE20K's labels for semantic segmentation with Detectron2.")
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help='folder that holds ADEChallengeData2016/; by default $DETECTRON2_DATASETS, or else "datasets"',
    )
    print(f"{prepare(parser.parse_args().root)}: prepared")


if __name__ == "__main__":
    main()
