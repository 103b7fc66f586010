"""Video panoptic quality (Kim et al. 2020, "Video Panoptic Segmentation", Sec. 4), with panopticapi's counts.

A video is an array (T, H, W, 2) of classes and ids, as in `dformer.metrics.stq`.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from panopticapi.evaluation import PQStat
from panopticapi.utils import id2rgb
from PIL import Image

from dformer.metrics.panoptic import Annotation, Categories, count_segments, panoptic_quality

Labels = NDArray[np.integer]
WINDOWS = (1, 2, 3, 4)  # frames


def video_panoptic_quality(
    videos: Iterable[tuple[Labels, Labels]], categories: Categories, windows: Sequence[int] = WINDOWS
) -> dict[str, float]:
    """Return VPQ, the mean of PQ over windows of several lengths, and the PQ of each ("VPQ1", ...), in 0..100.

    The segments of a window of k frames are tubes: a thing that changes its id is two. Windows begin at each frame.

    Args:
        videos: pairs (ground truth, prediction). A class that `categories` does not have is void. Ground truth of a
            thing with id 0 is a crowd.
    """
    counts = {k: PQStat() for k in windows}
    with tempfile.TemporaryDirectory() as folder:
        roots = Path(folder, "truth"), Path(folder, "found")
        for root in roots:
            root.mkdir()
        for both in videos:
            numbered = [_number(video, categories) for video in both]
            for k in windows:
                for start in range(len(both[0]) - k + 1):
                    pair = [
                        _write(numbers[start : start + k], segments, root)
                        for (numbers, segments), root in zip(numbered, roots, strict=True)
                    ]
                    counts[k] += count_segments(pair[0], pair[1], *roots, categories)
    quality = {f"VPQ{k}": panoptic_quality(counts[k], categories)["PQ"] for k in windows}
    return {"VPQ": float(np.mean(list(quality.values()))), **quality}


def _number(video: Labels, categories: Categories) -> tuple[NDArray[np.uint32], list[dict[str, Any]]]:
    """Number the segments of a video (T, H, W), 0 for void, and return them without their areas."""
    things = [i for i, category in categories.items() if category["isthing"]]
    classes, tracks = video[..., 0].astype(np.int64), np.where(np.isin(video[..., 0], things), video[..., 1], 0)
    known = np.where(np.isin(classes, list(categories)), (classes << 32) + tracks, -1)
    keys, numbers = np.unique(known, return_inverse=True)
    first = int(keys[0] >= 0)  # void is the first key, if there is any
    segments = [
        {"id": k, "category_id": key >> 32, "iscrowd": int(key >> 32 in things and key % 2**32 == 0)}
        for k, key in enumerate(keys[1 - first :].tolist(), start=1)
    ]
    return (numbers.reshape(video.shape[:-1]) + first).astype(np.uint32), segments


def _write(window: NDArray[np.uint32], segments: Sequence[dict[str, Any]], root: Path) -> Annotation:
    """Write the frames of a window below each other as one panoptic PNG, and return its annotation."""
    areas = np.bincount(window.ravel(), minlength=len(segments) + 1)
    found = [{**s, "area": int(areas[s["id"]])} for s in segments if areas[s["id"]]]
    Image.fromarray(id2rgb(window.reshape(-1, window.shape[-1]))).save(root / "window.png", compress_level=0)
    return {"image_id": 0, "file_name": "window.png", "segments_info": found}
