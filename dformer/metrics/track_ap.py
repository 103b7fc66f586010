"""Average precision of tracks (YouTube-VIS, Yang et al. 2019, Sec. 5): COCO's, with the IoU of whole videos.

The frames of a video beside each other are one image, so that pycocotools' IoU of masks is the sum of all
intersections over the sum of all unions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from dformer.metrics.instance import coco_evaluation, mask_average_precision

METRICS = ("AP", "AP50", "AP75", "AR1", "AR10")


def track_average_precision(
    truth: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> dict[str, float]:
    """Return the AP of tracks: `METRICS`, and the AP of each class (`AP-<class>`), 0..100, nan without any.

    Args:
        truth: tracks, each a dict of `video_id`, `category_id` in 0..K-1, `segmentation` (see `beside_each_other`) and
            optionally `iscrowd`.
        found: the same with a `score`, of all videos that are in `truth` or have no true track.
    """
    videos = sorted({track["video_id"] for track in (*truth, *found)})
    numbers = {name: number for number, name in enumerate(videos, start=1)}

    def as_coco(track: Mapping[str, Any]) -> dict[str, Any]:
        return {**track, "image_id": numbers[track["video_id"]], "category_id": track["category_id"] + 1}

    content = {
        "images": [{"id": number} for number in numbers.values()],
        "annotations": [{**as_coco(track), "area": float(rle.area(track["segmentation"]))} for track in truth],
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)],
    }
    for number, image in zip(numbers.values(), content["images"], strict=True):
        tracks = (t for t in (*truth, *found) if numbers[t["video_id"]] == number)
        image["height"], image["width"] = next(tracks)["segmentation"]["size"]
    evaluation = coco_evaluation(content, [as_coco(track) for track in found], list(numbers.values()))
    results = mask_average_precision(evaluation)
    return {name: value for name, value in results.items() if name in METRICS or name.startswith("AP-")}


def beside_each_other(masks: Sequence[dict[str, Any] | None], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Join a track's masks in the frames of a video, compressed RLEs or None, to one, from left to right.

    Args:
        sizes: height and width of each frame; lower ones are padded.
    """
    height = max(h for h, _ in sizes)
    counts, ends_inside = [0], False  # runs of outside and inside in turns
    for mask, (h, w) in zip(masks, sizes, strict=True):
        pixels = np.zeros((w, height), bool)  # COCO's runs go down the columns
        if mask is not None:
            pixels[:, :h] = rle.decode(mask).T
        flat = pixels.ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=ends_inside))
        runs = np.diff([0, *starts, len(flat)]).tolist()
        counts[-1] += runs[0]
        counts += runs[1:]
        ends_inside = bool(flat[-1])
    size = [height, sum(w for _, w in sizes)]
    return rle.frPyObjects({"size": size, "counts": counts}, *size)
