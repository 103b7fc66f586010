"""Videos of a data set: records of frames, and the classes and ids of their pixels.

Labels of a frame are an array (H, W, 2) int32 of classes, `VOID` where nothing is annotated, and of the objects' ids, 0
for stuff, crowds and void; those of a video (T, H, W, 2).
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from panopticapi.utils import rgb2id

from dformer.data.images import read_panoptic_png
from dformer.data.segmentations import compress, decode_rle, encode_mask
from dformer.data.types import Record, Size

VOID = 2**31 - 1  # no class has this number
Labels = NDArray[np.int32]


def group_videos(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each video, in the order of its frames."""
    ordered = sorted(records, key=lambda r: (r["video_id"], r["frame"], r["file_name"]))
    return {name: list(frames) for name, frames in groupby(ordered, key=lambda r: r["video_id"])}


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
