"""What the scripts in datasets/ share."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dformer.utils.errors import UserError


def default_root() -> str:
    """Return the folder of all data sets."""
    return os.environ.get("DETECTRON2_DATASETS", "datasets")


def run_script(prepare: Callable[[str], Sequence[Path]], description: str) -> None:
    """Run a script's `prepare` on the folder that --root names, and print what it has written."""
    parser = argparse.ArgumentParser(description=description)
    help_text = 'folder of all data sets; by default $DETECTRON2_DATASETS, or else "datasets"'
    parser.add_argument("--root", default=default_root(), help=help_text)
    for path in prepare(parser.parse_args().root):
        print(f"{path}: prepared")


def ade20k_names(folder: Path, split: str, *annotations: str) -> list[str]:
    """Return the names of ADE20K's images of a split ("training", "validation"), without suffix.

    Raises:
        UserError: there are none, or one lacks a PNG in one of the folders `annotations`.
    """
    images = folder / "images" / split
    names = sorted(file.stem for file in images.glob("*.jpg"))
    if not names:
        raise UserError(
            f"there are no images in {images.absolute()}; put ADE20K there (datasets/README.md), or set --root"
        )
    for kind in annotations:
        pngs = folder / kind / split
        if missing := sorted(set(names) - {file.stem for file in pngs.glob("*.png")}):
            raise UserError(
                f"{pngs.absolute()} has no PNG for {len(missing)} of {len(names)} images, the first {missing[0]}; "
                "datasets/README.md says where to get it"
            )
    return names
