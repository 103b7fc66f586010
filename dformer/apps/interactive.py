"""One image or short video, one request: what a page or a program asks of a trained model, bounded in size and time."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import transforms as T
from scipy import ndimage

from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.data.video import open_video
from dformer.d2.engine.predictor import IdMap, Predictor
from dformer.d2.engine.result import Result, merge_results
from dformer.d2.modeling.meta_arch import Request
from dformer.data.images import read_image, read_size
from dformer.utils.errors import UserError
from dformer.visualize import Bools, Color, Style, UInt8, class_color, fit_size, resize
from dformer.visualize.files import VideoWriter

MAX_MEGAPIXELS = 24  # of an image that is read
MAX_STEPS = 20
MAX_SIDE = 1280  # of results and pictures; larger images are made smaller
MAX_FRAMES = 300  # of a video
MAX_SAMPLES = 8  # answers that are merged
MAX_PAINTED = 50  # segments that are refined
PAINTS = ((230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25), (245, 130, 48), (145, 30, 180))  # RGB


class Entry(NamedTuple):
    """Hold a line of a legend; `share` of the picture, 0 to 1."""

    name: str
    color: Color
    score: float | None
    share: float


_lock = threading.Lock()  # models are loaded, and run, for one request at a time


def load_model(weights: str) -> Predictor:
    """Return the model of a checkpoint; the last two stay in memory."""
    with _lock:
        return _load_model(weights)


@lru_cache(maxsize=2)
def _load_model(weights: str) -> Predictor:
    return Predictor(inference_config(weights, None, []))


def open_image(file: str | Path) -> UInt8:
    """Read an image (H, W, 3), RGB, of at most `MAX_MEGAPIXELS`; a larger one is a UserError and not decoded."""
    name = Path(file).name
    try:
        height, width = read_size(file)
        if height * width > MAX_MEGAPIXELS * 10**6:
            raise UserError(
                f"{name} has {width} x {height} pixels, {height * width / 10**6:.0f} megapixels; "
                f"here it may have {MAX_MEGAPIXELS}. Make it smaller, or use `dformer demo`"
            )
        return read_image(file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from error  # without its folder on the server


def make_small(image: UInt8) -> UInt8:
    """Resize an image (H, W, 3) that is larger than results are, and return it."""
    height, width, _ = image.shape
    return T.ResizeTransform(height, width, *fit_size(height, width, MAX_SIDE)).apply_image(image)


def segment(
    predictor: Predictor,
    image: UInt8,
    request: Request,
    seconds: float,
    known: IdMap | None = None,
    samples: int = 1,
) -> list[Result]:
    """Segment an image (H, W, 3) for one task, and return what was found after each step.

    Instances of a score below the request's `object_threshold` are left out, too. After so many seconds the request is
    given up, between two steps; time in which others are served does not count.

    Masks are completed from what is `known` of them, by ids as of `Result.panoptic`, where the model can. More than one
    answer (`samples`) are merged, as of `Predictor.ensemble`, and what is returned is that alone.

    Raises:
        UserError: a value of the request is out of range, or it took too long.
    """
    if "steps" in predictor.model.options and request.steps > MAX_STEPS:
        raise UserError(f"steps must be in 1..{MAX_STEPS}, got {request.steps}")
    if not 1 <= samples <= MAX_SAMPLES:
        raise UserError(f"answers must be in 1..{MAX_SAMPLES}, got {samples}")
    (task,) = request.tasks
    if samples > 1 and task != "panoptic":
        raise UserError(f"answers: {samples} are merged for the task panoptic alone; choose it, or ask for one")
    given, small = (image.shape[0], image.shape[1]), make_small(image)
    if known is not None:
        known = T.ResizeTransform(*known.shape, *small.shape[:2]).apply_segmentation(known)
    names, least, total = predictor.class_names, request.object_threshold, samples * request.steps
    answers: list[Result] = []
    with _lock:
        start = time.monotonic()
        for k in range(samples):
            stages: list[Result] = []
            other = replace(request, seed=request.seed + k)
            for step in predictor.predict_steps([small], request=other, known=None if known is None else [known]):
                stages.append(Result(small, step.results[0], task, names, least, given, step.t))
                done = k * request.steps + len(stages)
                if time.monotonic() - start > seconds and done < total:
                    raise UserError(
                        f"given up after {seconds:g} seconds, with {done} of {total} sampling steps done; "
                        "ask for fewer, or for a smaller image"
                    )
            answers.append(stages[-1])
    return stages if samples == 1 else [merge_results(answers)]


def refine(predictor: Predictor, image: UInt8, masks: Bools, seed: int) -> Result:
    """Return better masks for coarse ones (M, h, w) of an image (H, W, 3), as of `Predictor.refine`."""
    small = make_small(image)
    size = small.shape[0], small.shape[1]
    with _lock:
        found = predictor.refine(small, np.array([resize(mask, size) for mask in masks]), seed=seed)
    return replace(found, size=(image.shape[0], image.shape[1]))


def painted_segments(layers: Sequence[UInt8]) -> Bools:
    """Return masks (M, H, W) of what is painted on layers (H, W, 4) RGBA in the colours `PAINTS`.

    Each patch of one colour is a segment; what it encloses is part of it. The edges of strokes do not count, as
    their colour is another. Nothing painted, or too much, is a UserError.
    """
    patches = [ndimage.label((layer == (*color, 255)).all(-1)) for layer in layers for color in PAINTS]
    count = sum(number for _, number in patches)
    if not 1 <= count <= MAX_PAINTED:
        raise UserError(f"{count} objects are painted; paint roughly over 1 to {MAX_PAINTED}")
    return np.array([ndimage.binary_fill_holes(ids == k + 1) for ids, number in patches for k in range(number)])


def segment_video(
    predictor: Predictor,
    file: str | Path,
    request: Request,
    seconds: float,
    picture: Path,
    style: Style,
    tracker: str = "",
) -> tuple[dict[str, Any], str]:
    """Follow the objects of a video by a tracker, or the model's TEST.TRACKER; write the drawn video to a file.

    Returns:
        The video as `dformer demo` writes it to `segments.json`, and what went wrong, a sentence or none: after so many
        seconds, the rest of the video is left out.

    Raises:
        UserError: the video cannot be read or has more than `MAX_FRAMES` frames, or a value of the request is out of
            range.
    """
    name, (task,) = Path(file).name, request.tasks
    numbers = {key: getattr(request, key) for key in (*predictor.model.options, "overlap_threshold")}
    asked: dict[str, Any] = {key: number for key, number in numbers.items() if number is not None}
    asked |= {} if task == "semantic" else {"threshold": request.object_threshold}
    if asked.get("steps", 1) > MAX_STEPS:
        raise UserError(f"steps must be in 1..{MAX_STEPS}, got {request.steps}")
    images: list[dict[str, Any]] = []
    try:
        reader = open_video(file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from error  # without its folder on the server
    problem, state, start = "", None, time.monotonic()
    with reader, VideoWriter(picture, reader.fps) as writer:
        if (reader.length or 0) > MAX_FRAMES:
            raise UserError(
                f"{name} has {reader.length} frames; here it may have {MAX_FRAMES}. Cut it, or use `dformer demo`"
            )
        for frame, image in islice(reader, MAX_FRAMES):
            if images and time.monotonic() - start > seconds:
                problem = f"given up after {seconds:g} seconds, with {len(images)} of {reader.length} frames done"
                break
            height, width, _ = image.shape
            with _lock:
                (found,), state = predictor.track([make_small(image)], state, tracker=tracker, task=task, **asked)
            writer.write(found.draw(style))
            images.append({"file": name, "frame": frame, "height": height, "width": width, "segments": found.to_coco()})
    if not images:
        raise UserError(f"{name} has no frame that can be read: it is damaged")
    return {"images": images}, problem


def legend(stage: Result) -> list[Entry]:
    """Return the segments of a stage in the order and the colours in which they are drawn."""
    instances: Counter[int] = Counter()
    entries = []
    for segment, name in zip(stage.segments, stage.names, strict=True):
        color = class_color(segment.category_id, instances[segment.category_id])
        instances[segment.category_id] += 1
        entries.append(Entry(name, color, segment.score, float(segment.mask.mean())))
    return entries


def as_json(result: Result, asked: dict[str, Any]) -> str:
    """Return the result as `dformer demo` writes it for an image, with what was asked for beside it."""
    size = {"height": result.size[0], "width": result.size[1]}
    return json.dumps({**asked, **size, "segments": result.to_coco()}, indent=1)
