"""The diffusion of a model, followed from outside and drawn.

M masks of N are followed; H, W: size of the picture; K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from torch import Tensor

from dformer.d2.data import class_names, get_metadata, num_classes, read_image, register_custom
from dformer.d2.data.datasets import loading
from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.meta_arch import DFormer
from dformer.data.annotations import annotation_reader
from dformer.data.types import Record
from dformer.diffusion.schedule import alpha_bar_schedule
from dformer.models.mask_decoder import Prediction, attended_regions
from dformer.signals.masks import diffuse, downsample, to_signal, to_unit
from dformer.utils import rng
from dformer.utils.errors import UserError
from dformer.visualize import Bools, Color, Floats, UInt8, class_color, draw_segments, result_segments
from dformer.visualize.diffusion import (
    Layer,
    Step,
    corruption_frames,
    denoising_frames,
    draw_corruption,
    draw_denoising,
)
from dformer.visualize.files import CODECS, FORMATS, save_animation, save_picture

SIDE = 480  # pixels: the long side of a picture of many
TIMES = (0, 10, 25, 50, 100, 200, 500, 999)
SUFFIXES = (*FORMATS, ".gif", *CODECS)


def show_denoising(
    cfg: CfgNode, file: str | None, name: str | None, index: int, most: int, outputs: Sequence[str], fps: float
) -> None:
    """Draw the sampling for an image: a sheet, or an animation with a frame a layer, as each output's suffix says.

    Args:
        cfg: config of a DFormer, its trained weights in MODEL.WEIGHTS.
        file: an image, or None for number `index` of data set `name`.
        most: number of masks that are followed.
        outputs: files to write, each with one of SUFFIXES.
        fps: frames a second of animations.

    Raises:
        UserError: image, model or weights cannot be used, or an output cannot be written.
    """
    _check(outputs)
    if name is not None:
        register_custom(cfg)
        file = image_record(name, index)["file_name"]
    image = read_image(str(file))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.TASKS = (cfg.INPUT.TASK,)
    trace = denoised(Predictor(cfg), image, cfg.INPUT.TASK, most)
    _write(outputs, lambda: draw_denoising(*trace), lambda: denoising_frames(*trace), fps)


def show_corruption(
    cfg: CfgNode, name: str, index: int, times: Sequence[int], most: int, outputs: Sequence[str], fps: float
) -> None:
    """Draw an annotated image's largest masks at `times`; other arguments, and errors, as of `show_denoising`."""
    _check(outputs)
    register_custom(cfg)
    objects = annotated_objects(name, index, cfg.INPUT.TASK, most)
    noisy = corrupted(cfg, objects.masks, times)
    _write(
        outputs, lambda: draw_corruption(*objects, noisy, times), lambda: corruption_frames(*objects, noisy, times), fps
    )


class Objects(NamedTuple):
    """An image (H, W, 3) and M of its objects: masks (M, H, W), class names, colours."""

    image: UInt8
    masks: Bools
    texts: list[str]
    colors: list[Color]


def annotated_objects(name: str, index: int, task: str, most: int) -> Objects:
    """The largest objects, at most so many, of an image of a data set, made smaller where it is large.

    Raises:
        UserError: there is no such data set or image, it is not annotated for `task`, or has no objects.
    """
    record = image_record(name, index)
    image = read_image(record["file_name"])
    resizing = T.ResizeTransform(*image.shape[:2], *_fitted(*image.shape[:2]))
    image = resizing.apply_image(image)
    ignore_label = get_metadata(name).get("ignore_label", 255)
    annotation = annotation_reader(task, num_classes(name, task), ignore_label)(record, (resizing.h, resizing.w))
    classes, masks = annotation.targets(T.TransformList([resizing]), (resizing.new_h, resizing.new_w))
    if not classes:
        raise UserError(f"{record['file_name']} has no annotated objects; choose another image with --index")
    largest = masks.flatten(1).sum(1).argsort(descending=True, stable=True)[:most].tolist()
    chosen = [classes[k] for k in largest]
    names = class_names(name, task)
    return Objects(image, masks[largest].numpy(), [names[c] for c in chosen], _colors(chosen))


def image_record(name: str, index: int) -> Record:
    """The record of image `index` (from 0) of a data set.

    Raises:
        UserError: there is no such data set or image.
    """
    get_metadata(name)
    with loading(name):
        records = DatasetCatalog.get(name)
    if not 0 <= index < len(records):
        raise UserError(f'data set "{name}" has the images 0 to {len(records) - 1}; there is no --index {index}')
    return records[index]


def corrupted(cfg: CfgNode, masks: Bools, times: Sequence[int]) -> list[Floats]:
    """Masks (M, H, W) as they are in training at each of `times`, all with the same noise: (M, h, w) in [0, 1] each.

    Schedule, signal scale, encoding and stride are those of DIFFUSION, the noise is drawn from DIFFUSION.SEED.

    Raises:
        UserError: a time is not in 0..DIFFUSION.TIMESTEPS - 1.
    """
    diffusion = cfg.DIFFUSION
    outside = [t for t in times if not 0 <= t < diffusion.TIMESTEPS]
    if outside:
        raise UserError(f"times are 0 to {diffusion.TIMESTEPS - 1} (DIFFUSION.TIMESTEPS), got {outside[0]}")
    alpha_bar = alpha_bar_schedule(diffusion.SCHEDULE, diffusion.TIMESTEPS)
    small = downsample(torch.from_numpy(masks), diffusion.MASK_STRIDE)
    return [
        diffuse(
            small,
            alpha_bar_t=float(alpha_bar[t]),
            scale=diffusion.SIGNAL_SCALE,
            encoding=diffusion.ENCODING,
            generator=rng.generator(torch.device("cpu"), diffusion.SEED),
        ).numpy()
        for t in times
    ]


@torch.no_grad()
def denoised(predictor: Predictor, image: UInt8, task: str, most: int) -> tuple[UInt8, list[Step], list[Color]]:
    """Follow the prediction for an image through all sampling steps and decoder layers.

    Args:
        predictor: of a DFormer, `task` in its TEST.TASKS.
        image: (H, W, 3) RGB.
        most: of the N masks, so many are followed, or all: those that win most of the image.

    Returns:
        The image, made smaller where it is large; the steps; and a colour for each mask, of its class in the end.

    Raises:
        UserError: the model is no DFormer.
    """
    model = predictor.model
    if not isinstance(model, DFormer):
        raise UserError(f"{type(model).__name__} has no diffusion to show; give the weights of a DFormer")
    small = T.ResizeTransform(*image.shape[:2], *_fitted(*image.shape[:2])).apply_image(image)
    images = model.preprocess([{"image": predictor.prepare(image)}])
    canvas, seen, size = tuple(images.tensor.shape[2:]), images.image_sizes[0], small.shape[:2]
    with predictor.autocast:
        features = model.features(images.tensor)
        steps = list(model.sample(features, [rng.generator(model.device, model.inference_seed)]))
    levels = [level.shape[-2:] for level in features[:0:-1]]
    chosen, classes = _most_seen(steps[-1].output[-1], most)

    def on_image(maps: Tensor, mode: str = "nearest") -> Floats:
        """(1, M, h, w) over the canvas -> (M, H, W): cut to the image, at the size of the picture."""
        whole = F.interpolate(maps.float(), canvas, mode=mode)[:, :, : seen[0], : seen[1]]
        return F.interpolate(whole, size, mode=mode)[0].cpu().numpy()

    followed = []
    for step in steps:
        noisy = to_unit(step.x_t[:, chosen], model.head.diffusion.scale)
        predictions = [_only(prediction, chosen) for prediction in step.output]
        attended = attended_regions(to_signal(noisy, 1.0), predictions, levels)
        layers = [
            Layer(
                on_image(regions) > 0.5,
                on_image(prediction.masks, "bilinear") > 0,
                _texts(prediction.logits[0], predictor.class_names),
            )
            for regions, prediction in zip(attended, predictions, strict=True)
        ]
        last = step.output[-1]
        result = model.result(last.logits[0].float(), last.masks[0].float(), canvas, seen, size)
        drawn = draw_segments(small, result_segments(result, task), predictor.class_names)
        followed.append(Step(step.t, on_image(noisy), layers, drawn))
    return small, followed, _colors(classes.tolist())


def _most_seen(prediction: Prediction, most: int) -> tuple[Tensor, Tensor]:
    """Of an image's N queries, the M that win most pixels, as in panoptic inference; and their likeliest class."""
    scores, classes = prediction.logits[0].float().softmax(-1)[:, :-1].max(-1)
    winner = (scores[:, None, None] * prediction.masks[0].float().sigmoid()).argmax(0)
    chosen = torch.bincount(winner.flatten(), minlength=len(scores)).argsort(descending=True, stable=True)[:most]
    return chosen, classes[chosen]


def _only(prediction: Prediction, chosen: Tensor) -> Prediction:
    """Of some of the queries."""
    return prediction._replace(logits=prediction.logits[:, chosen], mask_embed=prediction.mask_embed[:, chosen])


def _texts(logits: Tensor, names: Sequence[str]) -> list[str]:
    """The likeliest class of each of M queries and its probability, from (M, K + 1)."""
    probability, classes = logits.float().softmax(-1).max(-1)
    names = [*names, "nothing"]
    return [f"{names[c]} {100 * p:.0f}%" for p, c in zip(probability.tolist(), classes.tolist(), strict=True)]


def _colors(classes: Sequence[int]) -> list[Color]:
    """A colour each: of the class, and varied where it comes again."""
    return [class_color(c, list(classes[:k]).count(c)) for k, c in enumerate(classes)]


def _fitted(height: int, width: int) -> tuple[int, int]:
    """The size in the same proportions whose long side is at most SIDE."""
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _check(outputs: Sequence[str]) -> None:
    for output in outputs:
        if Path(output).suffix.lower() not in SUFFIXES:
            raise UserError(f"{output}: the suffix of an output says what it is; choose one of {', '.join(SUFFIXES)}")


def _write(
    outputs: Sequence[str], sheet: Callable[[], UInt8], frames: Callable[[], Iterator[UInt8]], fps: float
) -> None:
    for output in outputs:
        if Path(output).suffix.lower() in FORMATS:
            save_picture(sheet(), Path(output))
        else:
            save_animation(frames(), output, fps)
