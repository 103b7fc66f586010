"""One image or short video, one request: what a page or a program asks of a trained model, bounded in size and time."""

import json
import threading
import time
from collections import Counter
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import transforms as T

from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.data.video import open_video
from dformer.d2.engine.predictor import IdMap, Predictor
from dformer.d2.engine.result import Result
from dformer.d2.modeling.meta_arch import Request
from dformer.data.images import read_image, read_size
from dformer.utils.errors import UserError
from dformer.visualize import Color, Style, UInt8, class_color, fit_size
from dformer.visualize.files import VideoWriter

MAX_MEGAPIXELS = 24  # of an image that is read
MAX_STEPS = 20
MAX_SIDE = 1280  # of results and pictures; larger images are made smaller
MAX_FRAMES = 300  # of a video


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


def segment(
    predictor: Predictor, image: UInt8, request: Request, seconds: float, known: IdMap | None = None
) -> list[Result]:
    """Segment an image (H, W, 3) for one task, and return what was found after each step.

    Instances of a score below the request's `object_threshold` are left out, too. After so many seconds the request is
    given up, between two steps; time in which others are served does not count.

    Masks are completed from what is `known` of them, by ids as of `Result.panoptic`, where the model can.

    Raises:
        UserError: a value of the request is out of range, or it took too long.
    """
    if "steps" in predictor.model.options and request.steps > MAX_STEPS:
        raise UserError(f"steps must be in 1..{MAX_STEPS}, got {request.steps}")
    (task,) = request.tasks
    given = image.shape[0], image.shape[1]
    size = fit_size(*given, MAX_SIDE)
    small = T.ResizeTransform(*given, *size).apply_image(image)
    if known is not None:
        known = T.ResizeTransform(*known.shape, *size).apply_segmentation(known)
    stages: list[Result] = []
    with _lock:
        start = time.monotonic()
        for step in predictor.predict_steps([small], request=request, known=None if known is None else [known]):
            (found,) = step.results
            stages.append(Result(small, found, task, predictor.class_names, request.object_threshold, given, step.t))
            if time.monotonic() - start > seconds and len(stages) < request.steps:
                raise UserError(
                    f"given up after {seconds:g} seconds, with {len(stages)} of {request.steps} sampling steps done; "
                    "ask for fewer, or for a smaller image"
                )
    return stages


def segment_video(
    predictor: Predictor, file: str | Path, request: Request, seconds: float, picture: Path, style: Style
) -> tuple[dict[str, Any], str]:
    """Follow the objects of a video by the model's TEST.TRACKER; write the drawn video to a file.

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
            small = T.ResizeTransform(height, width, *fit_size(height, width, MAX_SIDE)).apply_image(image)
            with _lock:
                (found,), state = predictor.track([small], state, task=task, **asked)
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


def as_json(result: Result, request: Request, weights: str) -> str:
    """Return the result as `dformer demo` writes it for an image, with the request beside it."""
    size = {"height": result.size[0], "width": result.size[1]}
    return json.dumps({"weights": weights, **vars(request), **size, "segments": result.to_coco()}, indent=1)
