"""Pictures of a diffusion: noise as it becomes a result, and ground truth as it becomes noise (DFormer, Fig. 4).

M: maps (masks, bits, ...) that are followed, each in its colour; h, w: size of a map, which may be coarser.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dformer.visualize.arrays import Bools, Color, Floats, UInt8
from dformer.visualize.overlay import Region, draw_regions, enlarge
from dformer.visualize.panels import draw_panels

GAP = 4  # pixels between the small pictures of a mosaic


class LayerMaps(NamedTuple):
    """Hold a decoder layer: where it looked, (M, h, w) bool; masks that it predicted, (M, H, W) bool; their classes."""

    attended: Bools
    masks: Bools
    texts: Sequence[str]


class Objects(NamedTuple):
    """Hold an image (H, W, 3) and M of its objects: masks (M, H, W), class names, colours."""

    image: UInt8
    masks: Bools
    texts: Sequence[str]
    colors: Sequence[Color]


class StepMaps(NamedTuple):
    """Hold a sampling step: time, noisy maps (M, h, w) in [0, 1], decoder layers if any, a picture of the result."""

    t: float
    noisy: Floats
    layers: Sequence[LayerMaps]
    result: UInt8


def draw_noising(objects: Objects, noisy: Sequence[Floats], times: Sequence[float]) -> UInt8:
    """Draw a row an object: its place in the image, and what noise makes of its mask, (M, h, w) in [0, 1], at times."""
    pictures, captions = [], []
    for k, (mask, text) in enumerate(zip(objects.masks, objects.texts, strict=True)):
        whole = draw_regions(objects.image, [Region(mask, "", objects.colors[k])])
        row = whole, *(_map(at[k], objects.image) for at in noisy)
        pictures += [np.array(Image.fromarray(picture).reduce(2)) for picture in row]
        captions += [text, *(f"t = {t:g}" for t in times)]
    return draw_panels(pictures, captions, columns=1 + len(times))


def noising_frames(objects: Objects, noisy: Sequence[Floats], times: Sequence[float]) -> Iterator[UInt8]:
    """Yield a frame a time: all masks in the image, and what noise makes of them. Arguments as of `draw_noising`."""
    image, *_, colors = objects
    whole = _masks(*objects)
    for at, t in zip(noisy, times, strict=True):
        yield draw_panels([whole, _mosaic([_map(x, image) for x in at], colors)], ["ground truth", f"t = {t:g}"])


def draw_denoising(image: UInt8, steps: Sequence[StepMaps], colors: Sequence[Color]) -> UInt8:
    """Draw two rows a sampling step: noisy maps and where each layer looks; the step's result and each layer's masks.

    All steps have the same number of layers.
    """
    pictures, captions = [], []
    for number, step in enumerate(steps, start=1):
        pictures += [_noisy(image, step, colors), *(_attention(image, layer, colors) for layer in step.layers)]
        captions += [f"step {number}: noise, t = {step.t:g}"]
        captions += [f"where layer {k} looks" for k in range(1, len(step.layers) + 1)]
        pictures += [step.result, *(_masks(image, layer.masks, layer.texts, colors) for layer in step.layers)]
        captions += [f"result of step {number}"]
        captions += [f"masks and classes after layer {k}" for k in range(1, len(step.layers) + 1)]
    return draw_panels(pictures, captions, columns=1 + len(steps[0].layers))


def denoising_frames(image: UInt8, steps: Sequence[StepMaps], colors: Sequence[Color]) -> Iterator[UInt8]:
    """Yield a frame a layer: noisy maps, where the layer looks, its masks and classes, and the result so far.

    Without layers it is a frame a step: noisy maps and result.
    """
    result = enlarge(image)
    for number, step in enumerate(steps, start=1):
        noisy, caption = _noisy(image, step, colors), f"step {number} of {len(steps)}, t = {step.t:g}"
        for k, layer in enumerate(step.layers, start=1):
            if k == len(step.layers):
                result = step.result
            masks = _masks(image, layer.masks, layer.texts, colors)
            captions = [caption, f"where layer {k} looks", "masks and classes", "result"]
            yield draw_panels([noisy, _attention(image, layer, colors), masks, result], captions, columns=2)
        if not step.layers:
            yield draw_panels([noisy, step.result], [caption, "result"])


def _noisy(image: UInt8, step: StepMaps, colors: Sequence[Color]) -> UInt8:
    return _mosaic([_map(mask, image) for mask in step.noisy], colors)


def _attention(image: UInt8, layer: LayerMaps, colors: Sequence[Color]) -> UInt8:
    """The image, dark where the layer does not look."""
    picture = enlarge(image)
    lit = [_map(attended, image) > 127 for attended in layer.attended]
    return _mosaic([np.where(light, picture, picture // 4) for light in lit], colors)


def _masks(image: UInt8, masks: Bools, texts: Sequence[str], colors: Sequence[Color]) -> UInt8:
    return draw_regions(image, [Region(*region) for region in zip(masks, texts, colors, strict=True)])


def _map(values: Floats | Bools, image: UInt8) -> UInt8:
    """Values (h, w) in 0..1 as grey cells over all of a picture, (H * s, W * s, 3)."""
    height, width = enlarge(image).shape[:2]
    grey = Image.fromarray(np.rint(255 * values.astype(np.float32)).astype(np.uint8))
    return np.array(grey.resize((width, height), Image.Resampling.NEAREST).convert("RGB"))


def _mosaic(pictures: Sequence[UInt8], colors: Sequence[Color]) -> UInt8:
    """Pictures of one size, made small, each in a frame of its colour; together at most as large as one of them."""
    height, width = pictures[0].shape[:2]
    columns = math.ceil(math.sqrt(len(pictures)))
    across, down = width // columns, height // columns
    mosaic = np.full((down * math.ceil(len(pictures) / columns), width, 3), 255, np.uint8)
    for k, (picture, color) in enumerate(zip(pictures, colors, strict=True)):
        left, top = k % columns * across, k // columns * down
        mosaic[top : top + down - GAP, left : left + across - GAP] = color
        small = Image.fromarray(picture).resize((across - 3 * GAP, down - 3 * GAP), Image.Resampling.BOX)
        mosaic[top + GAP : top + down - 2 * GAP, left + GAP : left + across - 2 * GAP] = np.array(small)
    return mosaic
