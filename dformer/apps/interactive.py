"""One image, one request: what a page or a program asks of a trained model, bounded in size and time."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.data import transforms as T
from torch import Tensor, nn

from dformer.apps.demo.records import segment_record
from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.meta_arch import DFormer
from dformer.d2.modeling.meta_arch.segmenter import Segmenter
from dformer.data.images import read_image, read_size
from dformer.models.mask_decoder import Prediction
from dformer.postprocess import TASKS
from dformer.utils import rng
from dformer.utils.errors import UserError
from dformer.visualize import ALPHA, Color, Segment, UInt8, class_color, draw_segments, result_segments

MAX_MEGAPIXELS = 24  # of an image that is read
MAX_STEPS = 20
MAX_SIDE = 1280  # of results and pictures; larger images are made smaller


@dataclass(frozen=True)
class Request:
    """Attributes:
    task: "panoptic", "instance" or "semantic".
    masks: of the model's N, so many are used; at least 1.
    steps: sampling steps, 1 to `MAX_STEPS`; without meaning for models without diffusion.
    seed: of the noise, 0 or more.
    confidence: segments of a lower score are left out, 0 to 1; not of semantic results.
    overlap: panoptic segments of which less than this share stays visible are left out, 0 to 1.
    alpha: opacity of the colours, 0 to 1.
    """

    task: str
    masks: int
    steps: int
    seed: int
    confidence: float
    overlap: float
    alpha: float

    def check(self, predictor: Predictor) -> None:
        """Raise UserError where a value is outside of what it can be."""
        if self.task not in TASKS:
            raise UserError(f'task "{self.task}" does not exist; choose one of {", ".join(TASKS)}')
        ranges = {
            "masks": (1, predictor.num_masks),
            "steps": (1, MAX_STEPS),
            "seed": (0, 2**31 - 1),
            "confidence": (0, 1),
            "overlap": (0, 1),
            "alpha": (0, 1),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name} must be in {low}..{high}, got {getattr(self, name)}")


class Step(NamedTuple):
    """A result on the way: `t` of the noise that it was made from (None without diffusion), its segments, drawn."""

    t: int | None
    segments: list[Segment]
    picture: UInt8


class Answer(NamedTuple):
    """All steps, the last with the result; height and width of the image, names of the classes."""

    steps: list[Step]
    size: tuple[int, int]
    class_names: Sequence[str]


class Entry(NamedTuple):
    """A line of a legend; `share` of the picture, 0 to 1."""

    name: str
    color: Color
    score: float | None
    share: float


class Loaded(NamedTuple):
    """A model, and the request that its config amounts to."""

    predictor: Predictor
    request: Request


@lru_cache(maxsize=2)
def load_model(weights: str) -> Loaded:
    """The model of a checkpoint; the last two stay in memory.

    Raises:
        UserError: it cannot be used.
    """
    cfg = inference_config(weights, None, [])
    predictor = Predictor(cfg)
    request = Request(
        task=cfg.INPUT.TASK,
        masks=predictor.num_masks,
        steps=min(cfg.DIFFUSION.SAMPLING_STEPS, MAX_STEPS),
        seed=cfg.DIFFUSION.SEED,
        confidence=cfg.TEST.OBJECT_THRESHOLD,
        overlap=cfg.TEST.OVERLAP_THRESHOLD,
        alpha=ALPHA,
    )
    return Loaded(predictor, request)


def open_image(file: str | Path) -> UInt8:
    """Read an image (H, W, 3), RGB, of at most `MAX_MEGAPIXELS`; a larger one is not decoded.

    Raises:
        UserError: it is too large, or is no image that can be read.
    """
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
        raise UserError(str(error).replace(str(file), name)) from error  # not where it lies on the server


_running = threading.Lock()  # of models: one request at a time is computed


@torch.no_grad()
def segment(predictor: Predictor, image: UInt8, request: Request, seconds: float) -> Answer:
    """Segment an image, and keep what was there after each sampling step.

    Args:
        image: (H, W, 3) RGB.
        seconds: after which it is given up, between two steps. Time in which others are served does not count.

    Raises:
        UserError: a value of the request is out of range, or it took too long.
    """
    request.check(predictor)
    steps = []
    small = _fitted(image)
    with _running, _set_up(predictor.model, request), predictor.autocast:
        start = time.monotonic()
        for t, prediction, canvas, seen in _predictions(predictor, small):
            steps.append(_step(predictor, small, request, t, prediction, canvas, seen))
            if time.monotonic() - start > seconds and len(steps) < request.steps:
                raise UserError(
                    f"given up after {seconds:g} seconds, with {len(steps)} of {request.steps} sampling steps done; "
                    "ask for fewer, or for a smaller image"
                )
    return Answer(steps, image.shape[:2], predictor.class_names)


def _predictions(
    predictor: Predictor, image: UInt8
) -> Iterator[tuple[int | None, Prediction, tuple[int, int], tuple[int, int]]]:
    """After each step: its t, the prediction, and the sizes of the padded and of the resized image."""
    model = predictor.model
    images = model.preprocess([{"image": predictor.prepare(image)}])
    sizes = tuple(images.tensor.shape[2:]), images.image_sizes[0]
    features, generators = model.features(images.tensor), [rng.generator(model.device, model.inference_seed)]
    if isinstance(model, DFormer):
        for step in model.sample(features, generators):
            yield step.t, step.output[-1], *sizes
    else:
        yield None, model.predict(features, generators), *sizes


def _step(
    predictor: Predictor,
    image: UInt8,
    request: Request,
    t: int | None,
    prediction: Prediction,
    canvas: tuple[int, int],
    seen: tuple[int, int],
) -> Step:
    logits, masks = prediction.logits[0].float(), prediction.masks[0].float()
    result = predictor.model.result(logits, masks, canvas, seen, image.shape[:2])
    segments = result_segments(result, request.task)
    if request.task == "instance":
        segments = [segment for segment in segments if (segment.score or 0) >= request.confidence]
    return Step(t, segments, draw_segments(image, segments, predictor.class_names, request.alpha))


@contextmanager
def _set_up(model: Segmenter, request: Request) -> Iterator[None]:
    """Set a model up for a request, with as many of its queries as there are to be masks."""
    model.tasks = (request.task,)
    model.object_threshold, model.overlap_threshold = request.confidence, request.overlap
    model.inference_seed = request.seed
    head: Any = model.head
    owners: list[tuple[nn.Module, str]] = [(head.mask_decoder, "query_embed")]
    if isinstance(model, DFormer):
        model.sampling_steps = request.steps
    else:
        owners.append((head, "query_feat"))
    whole: list[Tensor] = [getattr(owner, name) for owner, name in owners]
    try:
        for (owner, name), queries in zip(owners, whole, strict=True):
            setattr(owner, name, nn.Parameter(queries[: request.masks]))
        yield
    finally:
        for (owner, name), queries in zip(owners, whole, strict=True):
            setattr(owner, name, queries)


def legend(step: Step, class_names: Sequence[str]) -> list[Entry]:
    """The segments of a step in the order and the colours in which they are drawn."""
    instances: Counter[int] = Counter()
    entries = []
    for segment in step.segments:
        color = class_color(segment.category_id, instances[segment.category_id])
        instances[segment.category_id] += 1
        entries.append(Entry(class_names[segment.category_id], color, segment.score, float(segment.mask.mean())))
    return entries


def as_json(answer: Answer, request: Request, weights: str) -> str:
    """The result as `tools/demo.py` writes it for an image, with the settings beside."""
    content = {
        "weights": weights,
        **vars(request),
        "height": answer.size[0],
        "width": answer.size[1],
        "segments": [
            segment_record(k, segment, answer.size, answer.class_names)
            for k, segment in enumerate(answer.steps[-1].segments, start=1)
        ],
    }
    return json.dumps(content, indent=1)


def _fitted(image: UInt8) -> UInt8:
    """The image, made smaller where its long side has more than `MAX_SIDE` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return T.ResizeTransform(height, width, *size).apply_image(image)
