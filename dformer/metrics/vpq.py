"""Video panoptic quality (Kim et al. 2020, "Video Panoptic Segmentation", Sec. 4), with panopticapi's counts.

A video is an array (T, H, W, 2) of classes and ids, as in `dformer.metrics.stq`.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

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
        for truth, found in videos:
            for k in windows:
                for start in range(len(truth) - k + 1):
                    pair = [
                        _write(video[start : start + k], categories, root)
                        for video, root in zip((truth, found), roots, strict=True)
                    ]
                    counts[k] += count_segments(pair[0], pair[1], *roots, categories)
    quality = {f"VPQ{k}": panoptic_quality(counts[k], categories)["PQ"] for k in windows}
    return {"VPQ": float(np.mean(list(quality.values()))), **quality}


def _write(window: Labels, categories: Categories, root: Path) -> Annotation:
    """Write the frames of a window below each other as one panoptic PNG, and return its annotation."""
    pixels = window.reshape(-1, *window.shape[2:]).astype(np.int64)  # (kH, W, 2)
    is_thing = np.isin(pixels[..., 0], [i for i, category in categories.items() if category["isthing"]])
    pixels[..., 1] *= is_thing
    pairs, index = np.unique(pixels.reshape(-1, 2), axis=0, return_inverse=True)
    segments, ids = [], np.zeros(len(pairs), np.uint32)
    for k, (category, track) in enumerate(pairs.tolist()):
        if category in categories:
            ids[k] = k + 1
            crowd = int(bool(categories[category]["isthing"]) and track == 0)
            segments.append({"id": k + 1, "category_id": category, "iscrowd": crowd, "area": int((index == k).sum())})
    Image.fromarray(id2rgb(ids[index].reshape(pixels.shape[:2]))).save(root / "window.png", compress_level=1)
    return {"image_id": 0, "file_name": "window.png", "segments_info": segments}
