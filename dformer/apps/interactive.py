"""One image, one request: what a page or a program asks of a trained model, bounded in size and time."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import transforms as T

from dformer.apps.demo.records import segment_record
from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.engine.predictor import IdMap, Predictor
from dformer.d2.modeling.meta_arch import Request
from dformer.data.images import read_image, read_size
from dformer.utils.errors import UserError
from dformer.visualize import (
    DEFAULT_STYLE,
    Color,
    Segment,
    Style,
    UInt8,
    class_color,
    draw_segments,
    fit_size,
    result_segments,
)

MAX_MEGAPIXELS = 24  # of an image that is read
MAX_STEPS = 20
MAX_SIDE = 1280  # of results and pictures; larger images are made smaller


class Stage(NamedTuple):
    """Hold what was found after a step: time of the noise (None without diffusion), segments, and a picture of them."""

    t: float | None
    segments: list[Segment]
    picture: UInt8


class Answer(NamedTuple):
    """Hold all stages, the last with the result; height and width of the image, names of the classes."""

    stages: list[Stage]
    size: tuple[int, int]
    class_names: Sequence[str]


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
                f"here it may have {MAX_MEGAPIXELS}. Make it smaller, or use tools/demo.py"
            )
        return read_image(file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from error  # without its folder on the server


def segment(
    predictor: Predictor,
    image: UInt8,
    request: Request,
    seconds: float,
    alpha: float = DEFAULT_STYLE.alpha,
    known: IdMap | None = None,
) -> Answer:
    """Segment an image (H, W, 3) for one task, and return what was found after each step.

    Instances of a score below the request's `object_threshold` are left out, too. After so many seconds the request is
    given up, between two steps; time in which others are served does not count.

    Masks are completed from what is `known` of them, by ids as of `ids_of`, where the model can.

    Raises:
        UserError: a value of the request is out of range, or it took too long.
    """
    if "steps" in predictor.model.options and request.steps > MAX_STEPS:
        raise UserError(f"steps must be in 1..{MAX_STEPS}, got {request.steps}")
    (task,) = request.tasks
    size = fit_size(image.shape[0], image.shape[1], MAX_SIDE)
    small = T.ResizeTransform(*image.shape[:2], *size).apply_image(image)
    if known is not None:
        known = T.ResizeTransform(*known.shape, *size).apply_segmentation(known)
    stages: list[Stage] = []
    with _lock:
        start = time.monotonic()
        for step in predictor.steps([small], request=request, known=None if known is None else [known]):
            segments = result_segments(step.results[0], task, request.object_threshold)
            picture = draw_segments(small, segments, predictor.class_names, Style(alpha))
            stages.append(Stage(step.t, segments, picture))
            if time.monotonic() - start > seconds and len(stages) < request.steps:
                raise UserError(
                    f"given up after {seconds:g} seconds, with {len(stages)} of {request.steps} sampling steps done; "
                    "ask for fewer, or for a smaller image"
                )
    return Answer(stages, (image.shape[0], image.shape[1]), predictor.class_names)


def ids_of(answer: Answer) -> IdMap:
    """Return a map (H, W) of the segments that were found, by their numbers from 1; 0 where there is none."""
    segments = answer.stages[-1].segments[:255]
    ids: IdMap = np.zeros(segments[0].mask.shape if segments else answer.size, np.uint8)
    for number, segment in enumerate(segments, start=1):
        ids[segment.mask] = number
    return ids


def legend(stage: Stage, class_names: Sequence[str]) -> list[Entry]:
    """Return the segments of a stage in the order and the colours in which they are drawn."""
    instances: Counter[int] = Counter()
    entries = []
    for segment in stage.segments:
        color = class_color(segment.category_id, instances[segment.category_id])
        instances[segment.category_id] += 1
        entries.append(Entry(class_names[segment.category_id], color, segment.score, float(segment.mask.mean())))
    return entries


def as_json(answer: Answer, request: Request, weights: str) -> str:
    """Return the result as `tools/demo.py` writes it for an image, with the request beside it."""
    records = [
        segment_record(k, segment, answer.size, answer.class_names)
        for k, segment in enumerate(answer.stages[-1].segments, start=1)
    ]
    size = {"height": answer.size[0], "width": answer.size[1]}
    return json.dumps({"weights": weights, **vars(request), **size, "segments": records}, indent=1)
