"""Files to be read and files to be written, by the names that the user gives."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dformer.data.images import read_labels
from dformer.utils.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}


def is_video(file: Path) -> bool:
    """Return whether a file is a video, by its suffix; a folder is one, of frames."""
    return file.suffix.lower() in VIDEOS or file.is_dir()


def read_known(file: str) -> NDArray[np.uint8]:
    """Read a map of ids of segments (H, W), 1 to 255, and 0 where nothing is known."""
    ids = read_labels(file)
    if ids.max(initial=0) > 255:
        raise UserError(f"{file} holds the id {ids.max()}; ids of segments are 1 to 255, and 0 where nothing is known")
    return ids.astype(np.uint8)


def _is_input(file: Path) -> bool:
    return file.suffix.lower() in IMAGES | VIDEOS and file.is_file()


def find_inputs(
    inputs: Sequence[str], recursive: bool = False, output: Path | None = None, frames: bool = False
) -> tuple[list[Path], list[str]]:
    """Return the files that `inputs` (files, folders, patterns) name, each once, and problems of those without any.

    With `recursive`, the folders in a folder are searched, too, except `output`. With `frames`, a folder is a video.
    """
    found: dict[Path, Path] = {}  # by resolved path, as a file may be named in many ways
    problems = []
    for name in inputs:
        path = Path(name)
        if "://" in name:
            files, missing = [], f"{name} is a URL; download it, and give the file"
        elif path.is_dir() and frames:
            files, missing = [path], ""
        elif path.is_dir():
            files = sorted(file for file in (path.rglob if recursive else path.glob)("*") if _is_input(file))
            if output and output.resolve() != path.resolve():
                files = [file for file in files if output.resolve() not in file.resolve().parents]
            missing = f"folder {name} has no images or videos ({', '.join(sorted(IMAGES | VIDEOS))})"
        elif path.exists() or not glob.has_magic(name):
            files, missing = [path], ""
        else:
            files = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
            missing = f"no file matches {name}"
        if not files:
            problems.append(missing)
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values()), problems


def output_files(files: Sequence[Path], output: Path) -> Iterator[Path]:
    """Yield the file of each result, `<output>/<name>.png` or `.mp4`, numbered if an input or a result has the name."""
    taken = {str(file.resolve()).casefold() for file in files}
    for file in files:
        suffix = ".mp4" if is_video(file) else ".png"
        number, result = 1, output / f"{file.stem}{suffix}"
        while str(result.resolve()).casefold() in taken:
            number += 1
            result = output / f"{file.stem}-{number}{suffix}"
        taken.add(str(result.resolve()).casefold())
        yield result
