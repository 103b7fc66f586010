"""From what the user names to files that are read, and to files that are written."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dformer.utils.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}


def is_video(file: Path) -> bool:
    """Whether a file is one by its name."""
    return file.suffix.lower() in VIDEOS


def find_inputs(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files that `inputs` (files, folders, patterns) stand for, each once, and what was not found.

    Raises:
        UserError: an input is a URL.
    """
    found: dict[Path, Path] = {}  # by the file itself, however it is written
    problems = []
    for name in inputs:
        if "://" in name:
            raise UserError(f"{name} is a URL; nothing is fetched here: download it and give the file")
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES | VIDEOS and file.is_file())
            missing = f"folder {name} holds no images or videos ({', '.join(sorted(IMAGES | VIDEOS))})"
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
    """Where the result for each of `files` goes: `<output>/<name>.png`, for videos `.mp4`, numbered where that is taken
    or is an input."""
    inputs = {str(file.resolve()).casefold() for file in files}
    taken: set[str] = set()
    for file in files:
        suffix = ".mp4" if is_video(file) else ".png"
        number, result = 1, output / f"{file.stem}{suffix}"
        while str(result.resolve()).casefold() in inputs | taken:
            number += 1
            result = output / f"{file.stem}-{number}{suffix}"
        taken.add(str(result.resolve()).casefold())
        yield result
