"""What the scripts in datasets/ have in common: they work in parallel, and go on where they were stopped."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dformer.utils.errors import UserError
from dformer.utils.processes import parallel_map


def default_root() -> str:
    """The folder of all data sets."""
    return os.environ.get("DETECTRON2_DATASETS", "datasets")


def ade20k_names(folder: Path, split: str, *annotations: str) -> list[str]:
    """Names of ADE20K's images of a split ("training", "validation"), without suffix.

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
        missing = sorted(set(names) - {file.stem for file in (folder / kind / split).glob("*.png")})
        if missing:
            raise UserError(
                f"{(folder / kind / split).absolute()} has no PNG for {len(missing)} of {len(names)} images, "
                f"{missing[0]} the first of them; datasets/README.md says where to get it"
            )
    return names


def fill_folder(
    target: Path, names: Sequence[str], work: Callable[[str, Path], Any], what: str | None, workers: int | None = None
) -> list[Any]:
    """Let `work(name, folder)` write the files of each of `names` to a folder that becomes `target` when all are there.

    Until then it is beside it and its name ends in ".partial"; the next call goes on with that.

    Args:
        target: replaced if it exists.
        names: of the images.
        work: returns what json can hold.
        what: is written before the progress bar; None: no bar.

    Returns:
        What `work` returned for each of `names`, in this call or an earlier one.
    """
    unfinished = target.with_name(target.name + ".partial")
    notes = unfinished / ".done"  # <name>.json: the files of this name are whole, and what `work` returned
    notes.mkdir(parents=True, exist_ok=True)
    todo = [name for name in names if not (notes / f"{name}.json").exists()]
    parallel_map(partial(_do, work=work, folder=unfinished, notes=notes), todo, what, workers)
    results = [json.loads((notes / f"{name}.json").read_text()) for name in names]
    shutil.rmtree(notes)
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)
    return results


def _do(name: str, work: Callable[[str, Path], Any], folder: Path, notes: Path) -> None:
    result = work(name, folder)
    partial_note = notes / f"{name}.json.partial"
    partial_note.write_text(json.dumps(result))
    partial_note.replace(notes / f"{name}.json")
