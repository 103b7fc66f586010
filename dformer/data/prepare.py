"""What the scripts in datasets/ share: they work in parallel, and continue where they were stopped."""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dformer.utils.errors import UserError
from dformer.utils.files import PARTIAL, read_json
from dformer.utils.processes import parallel_map


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


def fill_folder(target: Path, names: Sequence[str], work: Callable[[str, Path], Any], what: str | None) -> list[Any]:
    """Let `work(name, folder)` write the files of each of `names` to a folder that becomes `target` when complete.

    After an interruption, the next call continues with it.

    Args:
        target: replaced if it exists.
        names: of the images.
        work: returns what json can hold.
        what: printed before the progress bar; None: no bar.

    Returns:
        What `work` returned for each of `names`, in this call or an earlier one.
    """
    unfinished = target.with_name(PARTIAL + target.name)
    notes = unfinished / ".done"  # <name>.json: what `work` returned for this name, whose files are complete
    notes.mkdir(parents=True, exist_ok=True)
    todo = [name for name in names if not (notes / f"{name}.json").exists()]
    parallel_map(partial(_do, work=work, folder=unfinished, notes=notes), todo, what)
    results = [read_json(notes / f"{name}.json", f"remove {unfinished} and start again") for name in names]
    shutil.rmtree(notes)
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)
    return results


def _do(name: str, work: Callable[[str, Path], Any], folder: Path, notes: Path) -> None:
    (notes / f"{name}.json").write_text(json.dumps(work(name, folder)))
