"""Figures of the diffusion of any system that has one: noise on its way to a result, ground truth on its way to noise.

M rows of what is denoised (masks, boxes, bits, ...) are followed; H, W: size of the picture; K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from dformer.d2.data import class_names, get_metadata, num_classes, read_image, register_custom
from dformer.d2.data.datasets import get_records
from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.meta_arch import Segmenter
from dformer.data.annotations import Record, annotation_reader
from dformer.utils.errors import UserError
from dformer.visualize import Color, Floats, UInt8, class_color, draw_segments, fit_size, result_segments
from dformer.visualize.diffusion import (
    LayerMaps,
    Objects,
    StepMaps,
    denoising_frames,
    draw_denoising,
    draw_noising,
    noising_frames,
)
from dformer.visualize.files import CODECS, FORMATS, save_animation, save_picture

MAX_SIDE = 480  # pixels of the long side of a picture among many
TIMES = (0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1)  # shares of the time of pure noise
SUFFIXES = (*FORMATS, ".gif", *CODECS)


def show_denoising(
    cfg: CfgNode, file: str | None, name: str | None, index: int, max_rows: int, outputs: Sequence[str], fps: float
) -> None:
    """Draw the sampling for an image: a sheet, or an animation with a frame a layer, as each output's suffix says.

    Args:
        file: an image, or None for number `index` of data set `name`.
        max_rows: how many masks (boxes, bits, ...) are followed.
        outputs: files to write, each with one of SUFFIXES.
        fps: frames a second of animations.
    """
    _check_suffixes(outputs)
    if name is not None:
        register_custom(cfg)
        file = _image_record(name, index)["file_name"]
    image = read_image(str(file))
    maps = follow_denoising(Predictor(cfg), image, cfg.INPUT.TASK, max_rows)
    _write(outputs, lambda: draw_denoising(*maps), lambda: denoising_frames(*maps), fps)


def show_noising(
    cfg: CfgNode,
    name: str,
    index: int,
    times: Sequence[float] | None,
    max_rows: int,
    outputs: Sequence[str],
    fps: float,
) -> None:
    """Draw what training makes of an annotated image's largest objects at `times` (None: from signal to pure noise)."""
    _check_suffixes(outputs)
    register_custom(cfg)
    objects = annotated_objects(name, index, cfg.INPUT.TASK, max_rows)
    model = build_model(cfg)
    times = default_times(model) if times is None else times
    noisy = [noised(model, objects, t) for t in times]
    _write(outputs, lambda: draw_noising(objects, noisy, times), lambda: noising_frames(objects, noisy, times), fps)


def annotated_objects(name: str, index: int, task: str, max_rows: int) -> Objects:
    """Return the largest objects, at most so many, of an image of a data set, made smaller where it is large."""
    record = _image_record(name, index)
    image, resizing = _resized(read_image(record["file_name"]))
    ignore_label = get_metadata(name).get("ignore_label", 255)
    annotation = annotation_reader(task, num_classes(name, task), ignore_label)(record, (resizing.h, resizing.w))
    classes, masks, _ = annotation.targets(T.TransformList([resizing]), (resizing.new_h, resizing.new_w))
    if not classes:
        raise UserError(f"{record['file_name']} has no annotated objects; choose another image with --index")
    largest = masks.flatten(1).sum(1).argsort(descending=True, stable=True)[:max_rows].tolist()
    chosen = [classes[k] for k in largest]
    names = class_names(name, task)
    return Objects(image, masks[largest].numpy(), [names[c] for c in chosen], _colors(chosen))


def _image_record(name: str, index: int) -> Record:
    records = get_records(name)
    if not 0 <= index < len(records):
        raise UserError(f'data set "{name}" has the images 0 to {len(records) - 1}; there is no --index {index}')
    return records[index]


def default_times(model: Segmenter) -> list[float]:
    """Return the times at which noise is shown, from 0 to that of pure noise."""
    max_time = _max_time(model)
    return [round(share * max_time) if isinstance(max_time, int) else share * max_time for share in TIMES]


def noised(model: Segmenter, objects: Objects, t: float) -> Floats:
    """Return the objects as they are in training at time `t`, always with the same noise: (M, h, w) in [0, 1]."""
    _max_time(model)
    masks = torch.from_numpy(objects.masks)
    instances = Instances(objects.image.shape[:2], gt_masks=masks, gt_classes=torch.arange(len(masks)))
    noisy = model.noisy_targets([{"instances": instances}], t)
    assert noisy is not None
    return noisy[0].cpu().numpy()


@torch.no_grad()
def follow_denoising(
    predictor: Predictor, image: UInt8, task: str, max_rows: int
) -> tuple[UInt8, list[StepMaps], list[Color]]:
    """Follow the `max_rows` most visible predictions for an image (H, W, 3) through all sampling steps and layers.

    Returns:
        The image, made smaller where it is large; the steps; and a colour for each row that is followed.
    """
    _max_time(predictor.model)
    small, _ = _resized(image)
    request = replace(predictor.model.request, tasks=(task,))
    steps = list(predictor.predict_steps([image], [small.shape[:2]], request))
    rows = steps[-1].outputs[0].visible(max_rows)
    names = [*predictor.class_names, "nothing"]
    followed = []
    for step in steps:
        output, view = step.outputs[0], step.views[0]
        assert output.noisy is not None and step.t is not None
        layers = output.layers(rows)
        maps = []
        for layer in layers:
            attended, masks = view.resize(layer.attended).cpu() > 0.5, view.resize(layer.masks, "bilinear").cpu() > 0
            best = zip(*(x.tolist() for x in layer.logits.softmax(-1).max(-1)), strict=True)
            texts = [f"{names[c]} {100 * probability:.0f}%" for probability, c in best]
            maps.append(LayerMaps(attended.numpy(), masks.numpy(), texts))
        result = draw_segments(small, result_segments(step.results[0], task), predictor.class_names)
        followed.append(StepMaps(step.t, view.resize(output.noisy[rows]).cpu().numpy(), maps, result))
    last = [layer.logits[:, :-1].argmax(-1).tolist() for layer in layers[-1:]]
    return small, followed, _colors(last[0] if last else range(len(rows)))


def _max_time(model: Segmenter) -> float:
    if model.max_time is None:
        raise UserError(f"{type(model).__name__} has no diffusion to show; give the weights of a system that has one")
    return model.max_time


def _colors(classes: Sequence[int]) -> list[Color]:
    """Return a colour each: of the class, and varied where it comes again."""
    return [class_color(c, list(classes[:k]).count(c)) for k, c in enumerate(classes)]


def _resized(image: UInt8) -> tuple[UInt8, T.ResizeTransform]:
    resizing = T.ResizeTransform(*image.shape[:2], *fit_size(image.shape[0], image.shape[1], MAX_SIDE))
    return resizing.apply_image(image), resizing


def _check_suffixes(outputs: Sequence[str]) -> None:
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
