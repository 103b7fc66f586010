"""Segments drawn over their image: each in its colour, with an outline and a label."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from dformer.utils.errors import UserError
from dformer.visualize.arrays import Bools, Color, Floats, UInt8, tight_box
from dformer.visualize.color import class_color, lighten
from dformer.visualize.labels import Patch, draw_labels
from dformer.visualize.segments import Segment

COLOR_BY = ("class", "instance")
UNSURE: Color = (255, 32, 0)


@dataclass(frozen=True)
class Style:
    """Hold how segments are drawn; a wrong value is a UserError."""

    alpha: float = 0.55  # opacity of the colours, 0 to 1
    labels: bool = True  # write class and score on each segment
    color_by: str = "class"  # or "instance": each thing has a hue of its own; stuff keeps that of its class

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must be in 0..1, got {self.alpha:g}")
        if self.color_by not in COLOR_BY:
            raise UserError(f'color_by must be one of {", ".join(COLOR_BY)}, got "{self.color_by}"')


DEFAULT_STYLE = Style()  # the default


class Region(NamedTuple):
    """Hold a region to be drawn."""

    mask: Bools  # (H, W)
    text: str  # its label, or ""
    color: Color
    is_thing: bool = True  # stuff is drawn paler than things
    slope: int = 0  # 0 fills the region; 1 and -1 draw stripes that rise or fall to the right


def draw_segments(
    image: UInt8, segments: Iterable[Segment], class_names: Sequence[str], style: Style = DEFAULT_STYLE
) -> UInt8:
    """Draw segments, labelled with the name of their class and, if known, their score.

    Args:
        image: (H, W, 3) RGB or (H, W) grey.
        segments: they may overlap; smaller ones are drawn on top.
        class_names: K names; a class without one is a ValueError.
        style: opacity, labels and colours.

    Returns:
        The picture, (H * s, W * s, 3), see `enlargement`.
    """
    return draw_regions(image, _regions(segments, class_names, style.color_by), style)


def _regions(segments: Iterable[Segment], class_names: Sequence[str], color_by: str) -> Iterator[Region]:
    instances: Counter[int] = Counter()  # of each class, so far
    for segment in segments:
        category_id = segment.category_id
        if not 0 <= category_id < len(class_names):
            raise ValueError(f"category_id {category_id} has no name: there are {len(class_names)}")
        text = class_names[category_id] + ("" if segment.track is None else f" {segment.track}")
        text += "" if segment.score is None else f" {100 * segment.score:.0f}%"
        by_instance = color_by == "instance" and segment.is_thing
        number = instances.total() if by_instance else instances[category_id]
        number = number if segment.track is None else segment.track  # the same colour in all frames
        color = class_color(number) if by_instance else class_color(category_id, number)
        yield Region(segment.mask, text, color, segment.is_thing)
        instances[category_id] += bool(segment.mask.any())


def draw_agreement(image: UInt8, agreement: Floats) -> UInt8:
    """Draw where answers disagree: the image in grey, the redder the lower their agreement (H, W) in [0, 1] is."""
    canvas = enlarge(image)
    grey = canvas.mean(axis=2, keepdims=True)
    share = np.array(Image.fromarray(1 - agreement).resize(canvas.shape[1::-1], Image.Resampling.BILINEAR))[..., None]
    return np.rint(grey + share.clip(0, 1) * (np.array(UNSURE) - grey)).astype(np.uint8)


def draw_regions(image: UInt8, regions: Iterable[Region], style: Style = DEFAULT_STYLE) -> UInt8:
    """Draw regions as `draw_segments`: areas from the largest to the smallest, then outlines, then labels."""
    canvas = enlarge(image)
    font_size = min(40, max(10, round(math.sqrt(canvas.shape[0] * canvas.shape[1]) / 42)))  # pixels
    patches = [patch for region in regions if (patch := _patch(region, image.shape[:2])) is not None]
    patches.sort(key=lambda patch: -patch.area)
    for patch in patches:
        _fill(canvas, patch, style.alpha, stripe=max(2, font_size // 4))
    for patch in patches:
        _draw_outline(canvas, patch, width=max(1, round(font_size / 12)))
    if not style.labels:
        return canvas
    picture = Image.fromarray(canvas)
    draw_labels(picture, patches, font_size)
    return np.array(picture)


def enlargement(height: int, width: int) -> int:
    """Return the integer s by which an image is enlarged: enough for a long side of 480 pixels, but at most 8."""
    return min(8, math.ceil(480 / max(height, width)))


def enlarge(image: UInt8) -> UInt8:
    """Return a copy of an image (H, W, 3), (H, W, 1) or (H, W) in RGB, enlarged to the size of its picture."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
        raise ValueError(f"an image must be uint8 (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
    scale = enlargement(*image.shape[:2])
    size = image.shape[1] * scale, image.shape[0] * scale
    return np.array(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC))


def _patch(region: Region, shape: tuple[int, ...]) -> Patch | None:
    """Crop a region of an image of `shape` and scale it to the picture; None if its mask is empty."""
    if region.mask.shape != shape:
        raise ValueError(f"the image is {shape}, but the mask of a segment is {region.mask.shape}")
    box = tight_box(region.mask)
    if box is None:
        return None
    scale = enlargement(*shape)
    mask = region.mask[box].repeat(scale, axis=0).repeat(scale, axis=1)
    rows, columns = (slice(side.start * scale, side.stop * scale) for side in box)
    return Patch((rows, columns), mask, int(mask.sum()), *region[1:])


def _fill(canvas: UInt8, patch: Patch, alpha: float, stripe: int) -> None:
    """Blend the colour over a patch, or over stripes of it, `stripe` pixels wide and as far apart."""
    where = patch.mask
    if patch.slope:
        rows, columns = (np.arange(side.start, side.stop) for side in patch.box)
        where = where & ((columns + patch.slope * rows[:, None]) // stripe % 2 == 0)
    inside = canvas[patch.box]
    opacity = alpha if patch.is_thing else 0.7 * alpha  # things stand out from the stuff around them
    pixels = inside[where].astype(np.float32)
    # The image's own colours fade, so that a class looks much the same on red and on green.
    pixels += opacity * (pixels.mean(axis=1, keepdims=True) - pixels)
    pixels += opacity * (np.array(patch.color, np.float32) - pixels)
    inside[where] = np.rint(pixels)


def _draw_outline(canvas: UInt8, patch: Patch, width: int) -> None:
    """Draw the outline of a patch, inside it, in a lighter colour; none along the edges of the picture."""
    (height, rows), (length, columns) = zip(canvas.shape[:2], patch.box, strict=True)
    margin = [(min(1, rows.start), min(1, height - rows.stop)), (min(1, columns.start), min(1, length - columns.stop))]
    padded = np.pad(patch.mask, margin).view(np.uint8)
    inner = ndimage.minimum_filter(padded, 2 * width + 1, mode="nearest").view(bool)
    inner = inner[margin[0][0] : inner.shape[0] - margin[0][1], margin[1][0] : inner.shape[1] - margin[1][1]]
    canvas[patch.box][patch.mask & ~inner] = lighten(patch.color)
