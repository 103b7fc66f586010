"""Results of a model as segments, and pictures as files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dformer.errors import UserError
from dformer.visualize import Segment, UInt8, instance_segments, panoptic_segments, semantic_segments

TASKS = ("panoptic", "instance", "semantic")


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
    """Write a picture as JPEG or PNG, as the suffix of `file` says, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    is_png = file.suffix.lower() == ".png"
    options = {"compress_level": 1} if is_png else {"quality": 90}  # 6 takes as long as all else
    try:
        Image.fromarray(picture).save(partial, format="png" if is_png else "jpeg", **options)
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
