"""Videos: folders of frames; records of a data set's frames, and the classes and ids of their pixels.

Labels of a frame are an array (H, W, 2) int32 of classes, `VOID` where nothing is annotated, and of the objects' ids, 0
for stuff, crowds and void; those of a video (T, H, W, 2).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from panopticapi.utils import rgb2id

from dformer.data.forms.source import IMAGE_SUFFIXES
from dformer.data.images import read_image, read_panoptic_png
from dformer.data.segmentations import compress, decode_rle, encode_mask
from dformer.data.types import Record, Size
from dformer.utils.errors import UserError

VOID = 2**31 - 1  # no class has this number
FPS = 25.0  # of frames in a folder, which do not say
Labels = NDArray[np.int32]


def group_videos(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each video, in the order of its frames."""
    ordered = sorted(records, key=lambda r: (r["video_id"], r["frame"], r["file_name"]))
    return {name: list(frames) for name, frames in groupby(ordered, key=lambda r: r["video_id"])}


def video_key(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the video of a frame is known by among those of several data sets: its folder and name."""
    return str(Path(record.get("file_name", "")).parent), record.get("video_id", "")


def read_segments(record: Record) -> list[dict[str, Any]]:
    """Read the segments of a frame: `category_id` (contiguous), `isthing`, `iscrowd`, `track_id` and `segmentation`.

    A segmentation is a compressed RLE; only things that are no crowd have a track.
    """
    size = record["height"], record["width"]
    if "annotations" in record:
        segments = [
            {**a, "isthing": True, "segmentation": compress(a["segmentation"], size)} for a in record["annotations"]
        ]
    else:
        ids = rgb2id(read_panoptic_png(record["pan_seg_file_name"]))
        segments = [{**s, "segmentation": encode_mask(ids == s["id"])} for s in record["segments_info"]]
    keys = ("category_id", "isthing", "iscrowd", "track_id", "segmentation")
    return [{"iscrowd": 0, **{key: s[key] for key in keys if key in s}} for s in segments]


def paint_labels(segments: Sequence[dict[str, Any]], size: Size) -> Labels:
    """Paint segments (of `read_segments`, or with the same keys) on the labels of a frame, later ones over earlier."""
    labels = np.zeros((*size, 2), np.int32)
    labels[..., 0] = VOID
    for segment in segments:
        labels[decode_rle(segment["segmentation"]) > 0] = segment["category_id"], segment.get("track_id", 0)
    return labels


def number_pictures(record: Record, past: Sequence[Record | None]) -> list[NDArray[np.uint8]]:
    """Return pictures (H, W) of a frame and past frames, in which the frame's segments have the same numbers, from 1.

    Things are known by their track, stuff by its class. Elsewhere, and in frames that there are not, pictures are 0. Of
    a frame with more segments, the first 254 have numbers.
    """

    def key(segment: dict[str, Any]) -> tuple[str, int]:
        return ("track", segment["track_id"]) if "track_id" in segment else ("class", segment["category_id"])

    size = record["height"], record["width"]
    segments = [s for s in read_segments(record) if not s["iscrowd"]]
    numbers = {key(s): k for k, s in enumerate(segments[:254], start=1)}
    pictures = []
    for each in (read_segments(frame) if frame else [] for frame in (record, *past)):
        picture = np.zeros(size, np.uint8)
        for segment in each:
            if not segment["iscrowd"]:
                picture[decode_rle(segment["segmentation"]) > 0] = numbers.get(key(segment), 0)
        pictures.append(picture)
    return pictures


class FrameReader:
    """Read every n-th frame of a video in a folder, whose image files are the frames in the order of their names.

    `length` is the number of frames to be read. A folder without images is a UserError; `problems` names frames that
    cannot be read, which are left out.
    """

    def __init__(self, folder: str | Path, every: int = 1) -> None:
        files = sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"folder {folder} has no frames ({', '.join(IMAGE_SUFFIXES)})")
        self.files = list(enumerate(files))[::every]
        self.fps, self.length = FPS, len(self.files)
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the number of a frame, from 0, and the frame."""
        for index, file in self.files:
            try:
                yield index, read_image(file)
            except UserError as error:
                self.problems.append(str(error))

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *_: object) -> None:
        pass
