"""Segments on top of their image: each in its colour, with a rim and a label.

Results are taken apart into segments, and segments become regions: masks with a text and a colour.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from dformer.visualize.arrays import Bools, Color, Floats, Ints, UInt8, tight_box
from dformer.visualize.color import class_color, lighter
from dformer.visualize.labels import Patch, draw_labels

ALPHA = 0.55  # opacity of a segment's colour over the image


class Segment(NamedTuple):
    """A segment of a result or of the ground truth.

    Attributes:
        mask: (H, W) bool.
        category: class id in 0..K-1.
        score: in [0, 1], or None.
        is_thing: else it is stuff.
        is_crowd: several objects annotated as one.
    """

    mask: Bools
    category: int
    score: float | None = None
    is_thing: bool = True
    is_crowd: bool = False


class Region(NamedTuple):
    """What is drawn: a mask (H, W) with a text (if not empty) on it, in a colour, paler where it is no thing.

    `slope` 0 fills it; 1 and -1 draw stripes that rise or fall to the right.
    """

    mask: Bools
    text: str
    color: Color
    is_thing: bool = True
    slope: int = 0


def draw_panoptic(
    image: UInt8,
    segment_map: Ints,
    segments: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    alpha: float = ALPHA,
) -> UInt8:
    """Draw a panoptic result.

    Args:
        image: (H, W, 3) RGB or (H, W) grey.
        segment_map: (H, W) ids; pixels whose id is not among `segments` stay as they are.
        segments: each with "id", "category_id" in 0..K-1, and optionally "score" in [0, 1] and "isthing".
        class_names: K names.
        alpha: opacity of the colours, 0 to 1.

    Returns:
        The picture.

    Raises:
        ValueError: shapes disagree or a category has no name.
    """
    return draw_segments(image, panoptic_segments(segment_map, segments), class_names, alpha)


def draw_instances(
    image: UInt8,
    masks: Bools,
    classes: Sequence[int] | Ints,
    scores: Sequence[float] | Floats | None,
    class_names: Sequence[str],
    alpha: float = ALPHA,
) -> UInt8:
    """Draw instances; they may overlap, smaller ones lie on top.

    Args:
        image: (H, W, 3) RGB or (H, W) grey.
        masks: (N, H, W) bool; an instance without a pixel is left out.
        classes: N ids in 0..K-1.
        scores: N scores in [0, 1], or None for ground truth.
        class_names: K names.
        alpha: opacity of the colours, 0 to 1.

    Returns:
        The picture.

    Raises:
        ValueError: shapes disagree or a class has no name.
    """
    return draw_segments(image, instance_segments(masks, classes, scores), class_names, alpha)


def draw_semantic(image: UInt8, labels: Ints, class_names: Sequence[str], alpha: float = ALPHA) -> UInt8:
    """Draw a semantic result: each class in its colour, its name once, where most of it lies.

    Args:
        image: (H, W, 3) RGB or (H, W) grey.
        labels: (H, W) class ids; pixels outside 0..K-1 (an ignore label) stay as they are.
        class_names: K names.
        alpha: opacity of the colours, 0 to 1.

    Returns:
        The picture.

    Raises:
        ValueError: shapes disagree.
    """
    return draw_segments(image, semantic_segments(labels, len(class_names)), class_names, alpha)


def panoptic_segments(segment_map: Ints, segments: Iterable[Mapping[str, Any]]) -> Iterator[Segment]:
    """Segments of a map (H, W) of ids; of each, "id", "category_id", and "score", "isthing", "iscrowd" where known."""
    for info in segments:
        is_thing, is_crowd = bool(info.get("isthing", True)), bool(info.get("iscrowd", False))
        yield Segment(segment_map == info["id"], info["category_id"], info.get("score"), is_thing, is_crowd)


def instance_segments(
    masks: Bools, classes: Sequence[int] | Ints, scores: Sequence[float] | Floats | None = None
) -> Iterator[Segment]:
    """Segments from masks (N, H, W), N class ids, and N scores or None."""
    for k, mask in enumerate(masks):
        yield Segment(mask, int(classes[k]), None if scores is None else float(scores[k]))


def semantic_segments(labels: Ints, num_classes: int) -> Iterator[Segment]:
    """A segment for each class that is in `labels` (H, W); labels outside 0..K-1 are left out."""
    known = labels[(labels >= 0) & (labels < num_classes)]
    for category in np.flatnonzero(np.bincount(known)).tolist():
        yield Segment(labels == category, category, is_thing=False)


def draw_segments(image: UInt8, segments: Iterable[Segment], class_names: Sequence[str], alpha: float = ALPHA) -> UInt8:
    """Draw segments with their class's name and, if known, their score. Arguments and errors as of `draw_panoptic`."""
    return draw_regions(image, _regions(segments, class_names), alpha)


def _regions(segments: Iterable[Segment], class_names: Sequence[str]) -> Iterator[Region]:
    instances: Counter[int] = Counter()  # of each class, so far
    for segment in segments:
        if not 0 <= segment.category < len(class_names):
            raise ValueError(f"category {segment.category} has no name: there are {len(class_names)}")
        text = class_names[segment.category] + ("" if segment.score is None else f" {100 * segment.score:.0f}%")
        yield Region(segment.mask, text, class_color(segment.category, instances[segment.category]), segment.is_thing)
        instances[segment.category] += bool(segment.mask.any())


def draw_regions(image: UInt8, regions: Iterable[Region], alpha: float = ALPHA) -> UInt8:
    """Draw regions: colours from the largest to the smallest, then outlines, then labels.

    Args:
        image: (H, W, 3) RGB or (H, W) grey.
        regions: nothing is drawn of one whose mask is empty.
        alpha: opacity of the colours, 0 to 1.

    Returns:
        The picture.

    Raises:
        ValueError: it is no such image, or a mask is of another size.
    """
    canvas = enlarged(image)
    font_size = font_size_for(*canvas.shape[:2])
    patches = [patch for region in regions if (patch := _patch(region, image.shape[:2])) is not None]
    patches.sort(key=lambda patch: -patch.area)
    for patch in patches:
        _fill(canvas, patch, alpha, stripe=max(2, font_size // 4))
    for patch in patches:
        _draw_outline(canvas, patch, width=max(1, round(font_size / 12)))
    picture = Image.fromarray(canvas)
    draw_labels(picture, patches, font_size)
    return np.array(picture)


def enlargement(height: int, width: int) -> int:
    """By how much an image is enlarged before it is drawn on: until its long side has 480 pixels, at most 8 times."""
    return min(8, math.ceil(480 / max(height, width)))


def enlarged(image: UInt8) -> UInt8:
    """A copy of an image (H, W, 3), (H, W, 1) or (H, W) in RGB, at the size of its picture.

    Raises:
        ValueError: it is no such image.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
        raise ValueError(f"an image is uint8 (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
    scale = enlargement(*image.shape[:2])
    size = image.shape[1] * scale, image.shape[0] * scale
    return np.array(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC))


def font_size_for(height: int, width: int) -> int:
    """Height of the letters, in pixels, on a picture of that size."""
    return min(40, max(10, round(math.sqrt(height * width) / 42)))


def _patch(region: Region, shape: tuple[int, ...]) -> Patch | None:
    """A region of an image of `shape`, cut out and at the scale of the picture; None where its mask is empty."""
    if region.mask.shape != shape:
        raise ValueError(f"the image is {shape} and a segment of it is {region.mask.shape}")
    box = tight_box(region.mask)
    if box is None:
        return None
    scale = enlargement(*shape)
    mask = region.mask[box].repeat(scale, axis=0).repeat(scale, axis=1)
    rows, columns = (slice(side.start * scale, side.stop * scale) for side in box)
    _, text, color, is_thing, slope = region
    return Patch((rows, columns), mask, int(mask.sum()), color, text, is_thing, slope)


def _fill(canvas: UInt8, patch: Patch, alpha: float, stripe: int) -> None:
    """Lay the colour over a patch, or over stripes of it that are as wide as those between them."""
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
    """Draw the rim of a patch inside it, in its colour, lighter; no rim where the picture ends."""
    (height, rows), (length, columns) = zip(canvas.shape[:2], patch.box, strict=True)
    margin = [
        (min(1, rows.start), min(1, height - rows.stop)),
        (min(1, columns.start), min(1, length - columns.stop)),
    ]
    padded = np.pad(patch.mask, margin).view(np.uint8)
    inner = ndimage.minimum_filter(padded, 2 * width + 1, mode="nearest").view(bool)
    inner = inner[margin[0][0] : inner.shape[0] - margin[0][1], margin[1][0] : inner.shape[1] - margin[1][1]]
    rim = patch.mask & ~inner
    canvas[patch.box][rim] = lighter(patch.color)
