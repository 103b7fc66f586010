"""Pictures of results: plain arrays in, a picture out.

H, W: height and width of the image; K classes; N masks. Pictures are uint8 (H * s, W * s, 3) in RGB: small images are
enlarged by an integer s first (`enlargement`), so that labels can be read.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

UInt8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Color = tuple[int, int, int]
Box = tuple[slice, slice]  # rows, columns

ALPHA = 0.55  # opacity of a segment's colour over the image


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
    picture = _Picture(image, segment_map.shape, class_names)
    for segment in segments:
        mask = segment_map == segment["id"]
        picture.add(mask, segment["category_id"], segment.get("score"), segment.get("isthing", True))
    return picture.draw(alpha)


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
    picture = _Picture(image, masks.shape[1:], class_names)
    for k, mask in enumerate(masks):
        picture.add(mask, int(classes[k]), None if scores is None else float(scores[k]))
    return picture.draw(alpha)


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
    known = labels[(labels >= 0) & (labels < len(class_names))]
    present = np.flatnonzero(np.bincount(known)).tolist()
    segments = [{"id": c, "category_id": c, "isthing": False} for c in present]
    return draw_panoptic(image, labels, segments, class_names, alpha)


def draw_grid(masks: Floats, least: int = 96) -> UInt8:
    """Draw masks side by side, white inside and black outside, with a gap between.

    Args:
        masks: (R, C, h, w) in [0, 1], of R rows and C columns.
        least: pixels that the short side of a mask has at least, by repeating its own.

    Returns:
        The picture (R * h', C * w', 3), h' and w' with the gap.
    """
    s, gap = math.ceil(least / min(masks.shape[2:])), 2
    grey = np.rint(255 * masks).astype(np.uint8).repeat(s, axis=2).repeat(s, axis=3)
    framed = np.pad(grey, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=128)
    rows, columns, height, width = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[..., None].repeat(3, axis=2)


def enlargement(height: int, width: int) -> int:
    """By how much an image is enlarged before it is drawn on: until its long side has 480 pixels, at most 8 times."""
    return min(8, math.ceil(480 / max(height, width)))


def class_color(category: int, instance: int = 0) -> Color:
    """The colour of a class, the same in every picture: one hue a class; lightness and chroma vary over its instances.

    Args:
        category: class id, 0 or more.
        instance: running number of the instance among those of its class.

    Returns:
        Red, green and blue, 0 to 255.
    """
    golden = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 spread evenly, however many are taken
    spread = (0.5 + instance * golden) % 1 - 0.5  # 0 for the first instance, later ones fill [-0.5, 0.5)
    vivid = 0.19 - 0.09 * (category * math.sqrt(2) % 1)  # sets classes apart whose hues are close
    return _oklch_to_rgb(0.70 + 0.26 * spread, vivid * (1 - 0.6 * abs(spread)), 2 * math.pi * (category * golden % 1))


def _lighter(color: Color) -> Color:
    """Of rims and labels: stands out from the colour itself, and black can be read on it."""
    red, green, blue = (round(0.5 * channel + 0.5 * 255) for channel in color)
    return red, green, blue


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Color:
    """Oklab in polar form (B. Ottosson, "A perceptual color space for image processing", 2020) to sRGB.

    Equal steps look equally far apart, so that no class is paler than another. Chroma is reduced where sRGB ends.
    """
    while True:
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        lms = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
                        [1, -0.0894841775, -1.2914855480]]) @ [lightness, a, b]  # fmt: skip
        linear = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                           [-0.0041960863, -0.7034186147, 1.7076147010]]) @ lms**3  # fmt: skip
        if chroma < 0.01 or (linear.min() >= 0 and linear.max() <= 1):
            break
        chroma -= 0.005
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * srgb).astype(int).tolist()
    return red, green, blue


@dataclass
class _Region:
    """A segment in the picture: where it is, its colour, and what is written on it."""

    box: Box
    mask: Bools  # of the size of `box`
    area: int
    color: Color
    text: str
    is_thing: bool


class _Picture:
    """An image and the regions that are drawn on it."""

    def __init__(self, image: UInt8, shape: tuple[int, ...], class_names: Sequence[str]) -> None:
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise ValueError(f"an image is uint8 (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
        if image.shape[:2] != tuple(shape):
            raise ValueError(f"the image is {image.shape[:2]} and its segments are {tuple(shape)}")
        self.class_names = class_names
        self.scale = enlargement(*image.shape[:2])
        height, width = image.shape[0] * self.scale, image.shape[1] * self.scale
        self.image = Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        self.font_size = min(40, max(10, round(math.sqrt(height * width) / 42)))
        self.regions: list[_Region] = []
        self._instances: Counter[int] = Counter()  # of each class, so far

    def add(self, mask: Bools, category: int, score: float | None, is_thing: bool = True) -> None:
        """Add the segment `mask` (H, W), of which nothing is drawn when it is empty."""
        if not 0 <= category < len(self.class_names):
            raise ValueError(f"category {category} has no name: there are {len(self.class_names)}")
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(ys):
            return
        s = self.scale
        mask = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].repeat(s, axis=0).repeat(s, axis=1)
        top, left = int(ys[0]) * s, int(xs[0]) * s
        box = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        text = self.class_names[category] + ("" if score is None else f" {100 * score:.0f}%")
        color = class_color(category, self._instances[category])
        self._instances[category] += 1
        self.regions.append(_Region(box, mask, int(mask.sum()), color, text, bool(is_thing)))

    def draw(self, alpha: float) -> UInt8:
        """The picture: colours from the largest to the smallest region, then outlines, then labels."""
        self.regions.sort(key=lambda region: -region.area)
        canvas = np.array(self.image)
        for region in self.regions:
            inside = canvas[region.box]
            opacity = alpha if region.is_thing else 0.7 * alpha  # things stand out from the stuff around them
            pixels = inside[region.mask].astype(np.float32)
            # The image's own colours fade, so that a class looks much the same on red and on green.
            pixels += opacity * (pixels.mean(axis=1, keepdims=True) - pixels)
            pixels += opacity * (np.array(region.color, np.float32) - pixels)
            inside[region.mask] = np.rint(pixels)
        for region in self.regions:
            _draw_outline(canvas, region, width=max(1, round(self.font_size / 12)))
        picture = Image.fromarray(canvas)
        _draw_labels(picture, self.regions, self.font_size)
        return np.array(picture)


def _draw_outline(canvas: UInt8, region: _Region, width: int) -> None:
    """Draw the rim of a region inside it, in its colour, lighter; no rim where the picture ends."""
    (height, rows), (length, columns) = zip(canvas.shape[:2], region.box, strict=True)
    margin = [
        (min(1, rows.start), min(1, height - rows.stop)),
        (min(1, columns.start), min(1, length - columns.stop)),
    ]
    padded = np.pad(region.mask, margin).view(np.uint8)
    inner = ndimage.minimum_filter(padded, 2 * width + 1, mode="nearest").view(bool)
    inner = inner[margin[0][0] : inner.shape[0] - margin[0][1], margin[1][0] : inner.shape[1] - margin[1][1]]
    rim = region.mask & ~inner
    canvas[region.box][rim] = _lighter(region.color)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _label(text: str, size: int, color: Color) -> Image.Image:
    """`text` in black on a box of `color` with round corners, RGBA. Drawn four times as large: letters of this size
    are unevenly spaced where they are set pixel by pixel."""
    fine = 4
    font, pad = _font(fine * size), fine * max(2, size // 5)
    width, height = math.ceil(font.getlength(text) / fine) * fine + 2 * pad, fine * size + 2 * pad
    label = Image.new("RGBA", (width, height), (*color, 0))
    painter = ImageDraw.Draw(label)
    painter.rounded_rectangle((0, 0, width - 1, height - 1), pad, fill=color)
    painter.text((pad, height // 2), text, font=font, fill=(0, 0, 0), anchor="lm")
    return label.resize((width // fine, height // fine), Image.Resampling.BOX)


def _draw_labels(picture: Image.Image, regions: list[_Region], font_size: int) -> None:
    """Write on each region what it is, where it hides least.

    Places are compared on a grid of cells. A label never leaves the picture nor covers another label; it likes to lie
    on its own region, if that stays visible, and away from its rim, else beside it and not on other things. A region
    for which no such place is left, or that is only a few pixels large, gets no label.
    """
    cell = max(1, font_size // 4)
    rows, columns = picture.height // cell, picture.width // cell
    grids = [_on_grid(region, cell, rows, columns) for region in regions]
    things = np.zeros((rows, columns), np.float32)
    for region, grid in zip(regions, grids, strict=True):
        things += grid * region.is_thing
    taken = np.zeros((rows, columns), np.float32)
    # Things first: stuff has more places to choose from.
    for region, grid in sorted(zip(regions, grids, strict=True), key=lambda pair: not pair[0].is_thing):
        size = font_size if region.area > 30 * font_size**2 else max(9, round(0.8 * font_size))
        label = _label(region.text, size, _lighter(region.color))
        h, w = math.ceil(label.height / cell), math.ceil(label.width / cell)
        if region.area < size**2 / 4 or h > rows or w > columns:
            continue
        own = _box_mean(grid, h, w)
        centred = _box_mean(np.pad(grid, ((h, h), (w // 2, w - w // 2))), 3 * h, 2 * w)
        others = _box_mean(things - grid * region.is_thing, h, w)
        away, off_centre = _distances(region.box, cell, own.shape, (h, w))
        hidden = own * label.width * label.height / region.area
        score = own + centred - 2 * np.maximum(0, hidden - 0.3) - 0.5 * away / h - 0.5 * others
        score -= 0.3 * off_centre / (rows + columns)
        hides_too_much = (hidden > 0.6) | (others * label.width * label.height > 2 * region.area)
        score[(_box_mean(taken, h, w) > 0) | (away > 1.5 * h) | hides_too_much] = -np.inf
        row, column = np.unravel_index(np.argmax(score), score.shape)
        if score[row, column] == -np.inf:
            continue
        taken[row : row + h, column : column + w] = 1
        picture.paste(label, (int(column) * cell, int(row) * cell), label)


def _on_grid(region: _Region, cell: int, rows: int, columns: int) -> Floats:
    """(rows, columns): 1 where the middle of the cell lies on the region, else 0."""
    grid = np.zeros((rows, columns), np.float32)
    (top, left), middle = (side.start for side in region.box), cell // 2
    row, column = (max(0, math.ceil((start - middle) / cell)) for start in (top, left))
    sampled = region.mask[row * cell + middle - top :: cell, column * cell + middle - left :: cell]
    target = grid[row : row + sampled.shape[0], column : column + sampled.shape[1]]
    target[:] = sampled[: target.shape[0], : target.shape[1]]
    return grid


def _box_mean(grid: Floats, height: int, width: int) -> Floats:
    """Mean of `grid` (R, C) over each box of `height` x `width` cells: (R - height + 1, C - width + 1)."""
    total = np.pad(grid, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows = total[height:] - total[:-height]
    return (rows[:, width:] - rows[:, :-width]) / (height * width)


def _distances(box: Box, cell: int, places: tuple[int, ...], size: tuple[int, int]) -> tuple[Floats, Floats]:
    """In cells, for all `places` of a label of `size` cells: from its rim to `box` (in pixels), and between middles."""
    gaps, shifts = [], []
    for side, count, length in zip(box, places, size, strict=True):
        start = np.arange(count)
        gaps.append(np.maximum(0, np.maximum(side.start / cell - (start + length), start - side.stop / cell)))
        shifts.append(start + length / 2 - (side.start + side.stop) / (2 * cell))
    return np.hypot(*np.ix_(*gaps)), np.hypot(*np.ix_(*shifts))
