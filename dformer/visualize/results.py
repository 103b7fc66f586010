"""Results of a model as segments, and pictures as files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dformer.utils.errors import UserError
from dformer.visualize import Segment, UInt8, instance_segments, panoptic_segments, semantic_segments

TASKS = ("panoptic", "instance", "semantic")
INSTANCE_THRESHOLD = 0.5  # least score of instances that are shown, by default
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "png", "compress_level": 1},  # 6 takes as long as all else
    ".jpg": {"format": "jpeg", "quality": 90},
    ".webp": {"format": "webp", "quality": 75},
}


def result_segments(result: dict[str, Any], task: str) -> list[Segment]:
    """Segments of an image, none of them empty, from what `Segmenter.forward` returns for it.

    Args:
        task: one of TASKS.
    """
    if task == "panoptic":
        segment_map, infos = result["panoptic_seg"]
        return list(panoptic_segments(segment_map.cpu().numpy(), infos))
    if task == "instance":
        objects = result["instances"].to("cpu")
        masks = objects.pred_masks.numpy()
        found = instance_segments(masks, objects.pred_classes.tolist(), objects.scores.tolist())
        return [segment for segment in found if segment.mask.any()]
    scores = result["sem_seg"]
    return list(semantic_segments(scores.argmax(0).cpu().numpy().astype(np.int64), len(scores)))


def save_picture(picture: UInt8, file: Path) -> None:
    """Write a picture in the format that the suffix of `file` says, one of FORMATS, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        Image.fromarray(picture).save(partial, **FORMATS[file.suffix.lower()])
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
