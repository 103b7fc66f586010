"""Tracks of a video in the field's formats, beside its pictures: what other programs evaluate and edit.

"youtube_vis": `<name>.tracks.json`, results as YouTube-VIS has them: a list of `{"video_id", "category_id", "score",
"segmentations"}`, a mask or null for each frame. They are kept until the end: memory grows with the video.
"mots": `<name>.tracks.txt`, a line for each object in a frame: frame, id (1000 class + track), class from
1, height, width, RLE.
"png": `<name>.tracks/00000.png`, ids by pixel: with a palette, as DAVIS; of 16 bits in frames with a track above 255.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dformer.data.segmentations import decode_rle
from dformer.utils.errors import UserError, did_you_mean
from dformer.utils.files import atomic_folder, atomic_write, write_json
from dformer.visualize.color import class_color

Write = Callable[[dict[str, Any]], None]  # of a frame's record in `segments.json`


@contextmanager
def track_files(formats: Sequence[str], stem: Path) -> Iterator[list[Write]]:
    """Write the tracks of a video to files that begin with `stem`; yield functions that add a frame's record.

    The files appear at the end of the `with` statement, also after KeyboardInterrupt, but after no other error.
    """
    interruption = None
    with ExitStack() as stack:
        try:
            yield [stack.enter_context(FORMATS[name](stem)) for name in formats]
        except KeyboardInterrupt as error:
            interruption = error
    if interruption:
        raise interruption


def check_formats(formats: Sequence[str]) -> None:
    """Check the names of formats, and raise a `UserError` for one that there is not."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f'tracks: there is no format "{name}"{did_you_mean(name, FORMATS)} ({", ".join(FORMATS)})')


@contextmanager
def _youtube_vis(stem: Path) -> Iterator[Write]:
    tracks: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    frames = 0

    def add(record: dict[str, Any]) -> None:
        nonlocal frames
        for segment in record["segments"]:
            if "track_id" in segment:
                tracks[segment["track_id"]][frames] = segment
        frames += 1

    yield add
    content = [
        {
            "video_id": stem.name,
            "category_id": Counter(s["category_id"] for s in seen.values()).most_common(1)[0][0],
            "score": float(np.mean([s["score"] for s in seen.values()])),
            "segmentations": [seen[t]["segmentation"] if t in seen else None for t in range(frames)],
        }
        for seen in tracks.values()
    ]
    write_json(stem.with_name(f"{stem.name}.tracks.json"), content)


@contextmanager
def _mots(stem: Path) -> Iterator[Write]:
    file = stem.with_name(f"{stem.name}.tracks.txt")
    with atomic_write(file) as partial_file, partial_file.open("w") as stream:

        def add(record: dict[str, Any]) -> None:
            for s in record["segments"]:
                if "track_id" in s:
                    cls, (height, width) = s["category_id"] + 1, s["segmentation"]["size"]
                    number = 1000 * cls + s["track_id"]
                    stream.write(f"{record['frame']} {number} {cls} {height} {width} {s['segmentation']['counts']}\n")

        yield add


@contextmanager
def _png(stem: Path) -> Iterator[Write]:
    palette = [channel for i in range(256) for channel in (class_color(i) if i else (0, 0, 0))]
    with atomic_folder(stem.with_name(f"{stem.name}.tracks")) as folder:
        yield partial(_write_png, folder, palette)


def _write_png(folder: Path, palette: list[int], record: dict[str, Any]) -> None:
    ids = np.zeros((record["height"], record["width"]), np.uint16)
    for segment in sorted(record["segments"], key=lambda s: s["score"] or 0):
        if "track_id" in segment:
            ids[decode_rle(segment["segmentation"]) > 0] = segment["track_id"]
    if ids.max(initial=0) < 256:
        picture = Image.fromarray(ids.astype(np.uint8), "P")
        picture.putpalette(palette)
    else:
        picture = Image.fromarray(ids)
    picture.save(folder / f"{record['frame']:05d}.png")


FORMATS = {"youtube_vis": _youtube_vis, "mots": _mots, "png": _png}
