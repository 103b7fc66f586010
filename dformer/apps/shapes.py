"""Shapes: a generated panoptic data set in COCO's layout, small enough to train on a CPU in minutes.

Four kinds of things (disc, square, triangle, star; any colour, size and rotation, later ones occlude earlier ones) are
on one to three kinds of stuff (grass, water, brick). Its outline and the pattern of its surface tell what a thing is,
its colours do not. Category ids have gaps, as COCO's have, and segment ids use all three bytes of the panoptic PNG.

    dformer shapes

writes (and the next call, with the same parameters, leaves alone)

    <root>/shapes/
        train/*.jpg                     val/*.jpg                     images
        panoptic_train/*.png            panoptic_val/*.png            segment ids, id = R + 256 G + 65536 B, 0: void
        semantic_train/*.png            semantic_val/*.png            contiguous class ids, 255: void
        annotations/panoptic_{train,val}.json                         segments_info
        annotations/instances_{train,val}.json                        things, as RLE
        parameters.json                                               what this was generated with

    dformer shapes --small --size 256

writes 80 to 150 things of 5 to 15 pixels an image, as cells under a microscope, to <root>/shapes_small/.

    dformer shapes --video shapes.mp4 --frames 100

writes a video instead: a camera circles over a scene.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from tqdm import tqdm

from dformer.data.prepare import default_root
from dformer.data.segmentations import area_and_box, encode_mask, json_rle
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import atomic_folder
from dformer.visualize.files import save_animation

Array = NDArray[np.floating[Any]]

VERSION = 3  # raised when the same parameters would give other images
VOID = 255  # in the semantic PNGs
MIN_VISIBLE = 30  # pixels: stuff that shows less is void
CATEGORIES: list[dict[str, Any]] = json.loads((files("dformer") / "data/shapes_categories.json").read_text())
THINGS = [c["name"] for c in CATEGORIES if c["isthing"]]
STUFF = [c["name"] for c in CATEGORIES if not c["isthing"]]
SPLITS = ("train", "val")
SMALL_TEXTURE = 64  # pixels: the patterns of small things are those of an image of this size


class Things(NamedTuple):
    """Hold how things are drawn: `number` and `extent` (the side of a square of their area, in pixels) from..to,
    pixels that have to be visible of each, and the `texture`, the size of image that their patterns are made for."""

    number: tuple[int, int]
    extent: tuple[float, float]
    visible: int
    texture: int

    @classmethod
    def of(cls, size: int, small: bool) -> "Things":
        """Return what things in an image of that size are like."""
        return cls((80, 150), (5, 15), 12, SMALL_TEXTURE) if small else cls((2, 6), (size / 10, size / 2), 30, size)


@dataclass(frozen=True)
class Parameters:
    """Hold what a Shapes data set is generated with.

    Attributes:
        train, val: number of images.
        size: height and width of an image, in pixels; at least 32.
        seed: of all random numbers; image i of a split depends on (seed, split, i) alone.
        small: whether there are many small things.
    """

    train: int = 2000
    val: int = 100
    size: int = 128
    seed: int = 0
    small: bool = False


DEFAULT = Parameters()


def generate(root: str | Path, parameters: Parameters = DEFAULT, progress: bool = True) -> Path:
    """Write the data set to `<root>/shapes`, unless it is there with the same parameters; return that folder.

    Small things are in `<root>/shapes_small`.

    It is written beside its place and moved there when whole.

    Raises:
        UserError: a parameter is out of range, or the folder holds something that this did not write.
    """
    if parameters.size < 32 or min(parameters.train, parameters.val) < 1:
        raise UserError(f"Shapes needs a size of at least 32 and at least one image a split, got {parameters}")
    folder = Path(root) / ("shapes_small" if parameters.small else "shapes")
    stamp = {"version": VERSION, **asdict(parameters)}
    stamp_file = folder / "parameters.json"
    if folder.exists():
        if not stamp_file.is_file():
            raise UserError(f"{folder} exists and was not written by shapes.py; move it away or choose another root")
        if asdict(DEFAULT) | json.loads(stamp_file.read_text()) == stamp:
            return folder

    with atomic_folder(folder) as new:
        for split in SPLITS:
            _write_split(new, split, parameters, progress)
        (new / "parameters.json").write_text(json.dumps(stamp))
    return folder


def draw(
    rng: np.random.Generator, size: int, small: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[int]]:
    """Draw one image.

    Returns:
        image: (size, size, 3) RGB.
        segments: (size, size), indices into `classes`; -1 is void.
        classes: of each segment, an index into `CATEGORIES`; things first, in drawing order, each with its pixels.
    """
    image, stuff = draw_stuff(rng, size)
    segments = np.full((size, size), -1)
    classes: list[int] = []
    things = Things.of(size, small)
    areas = visible = np.zeros(0, int)  # pixels of each thing, before and after later ones occlude it
    light = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(things.number[0], things.number[1] + 1)):
        for _attempt in range(20):
            kind = int(rng.integers(len(THINGS)))
            window, coverage = _outline(rng, THINGS[kind], size, things.extent)
            inside = coverage > 0.5
            occluded = segments[window][inside]
            lost = np.bincount(occluded[occluded >= 0], minlength=len(classes))
            left, full = (np.append(x, inside.sum()) for x in (visible - lost, areas))
            if (left >= np.maximum(things.visible, 0.5 * full)).all():
                surface = draw_surface(rng, THINGS[kind], coverage.shape, light, things.texture)
                image[window] += coverage[..., None] * (surface - image[window])
                segments[window][inside] = len(classes)
                areas, visible = full, left
                classes.append(kind)
                break

    for kind in range(len(STUFF)):
        seen = (segments < 0) & (stuff == kind)
        if seen.sum() >= MIN_VISIBLE:
            segments[seen] = len(classes)
            classes.append(len(THINGS) + kind)

    image *= 1 + 0.35 * _smooth_noise(rng, size, 2)[..., None]  # uneven illumination
    image += rng.normal(0, 0.012, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), segments, classes


def film(rng: np.random.Generator, size: int, frames: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames (size, size, 3) of a camera that circles once over a scene of twice its area."""
    scene, _, _ = draw(rng, round(size * 2**0.5))
    free = len(scene) - size
    for angle in 2 * np.pi * np.arange(frames) / frames:
        top, left = (round(free * (1 + offset) / 2) for offset in (np.sin(angle), np.cos(angle)))
        yield scene[top : top + size, left : left + size]


def draw_stuff(rng: np.random.Generator, size: int) -> tuple[Array, NDArray[np.int64]]:
    """Draw textured regions; return the image (size, size, 3) in [0, 1] and the index into `STUFF` of each pixel."""
    present = rng.permutation(len(STUFF))[: rng.choice([1, 2, 3], p=[0.1, 0.45, 0.45])]
    heights = np.full((len(STUFF), size, size), -np.inf)
    for kind in present:
        heights[kind] = _smooth_noise(rng, size, 3)
    region = heights.argmax(0)
    image = np.zeros((size, size, 3))
    for kind in present:
        share = uniform_filter((region == kind).astype(float), 3)  # anti-aliased boundary
        image += share[..., None] * TEXTURES[STUFF[kind]](rng, size)
    return image, region


def _grass(rng: np.random.Generator, size: int) -> Array:
    blades = uniform_filter(rng.normal(size=(size, size)), (max(3, size // 16), 1))
    tone = 0.8 * blades / blades.std() + 2.5 * _smooth_noise(rng, size, 6)
    return _jitter(rng, (0.35, 0.55, 0.2)) * (1 + 0.3 * tone[..., None])


def _water(rng: np.random.Generator, size: int) -> Array:
    y, x = np.mgrid[:size, :size] / size
    phase = rng.uniform(8, 13) * y + rng.uniform(-2, 2) * x + 1.2 * _smooth_noise(rng, size, 6)
    crest = np.exp(2 * np.sin(2 * np.pi * phase) - 2)  # narrow bright crests, wide dark troughs
    return _jitter(rng, (0.2, 0.45, 0.6)) * (0.8 + 0.6 * crest[..., None])


def _brick(rng: np.random.Generator, size: int) -> Array:
    height = rng.uniform(0.05, 0.08) * size
    y, x = np.mgrid[:size, :size] + rng.uniform(0, size, (2, 1, 1))
    row = np.floor(y / height)
    column = np.floor(x / (2 * height) + row / 2)
    tone = rng.normal(1, 0.12, (7, 7))[row.astype(int) % 7, column.astype(int) % 7]
    to_joint = np.minimum(y % height, (x + row * height) % (2 * height))  # from the upper and the left edge, pixels
    joint = (to_joint < 0.16 * height)[..., None]
    tone = tone + 0.3 * _smooth_noise(rng, size, 16)
    return np.where(joint, _jitter(rng, (0.65, 0.62, 0.58)), _jitter(rng, (0.6, 0.35, 0.28)) * tone[..., None])


TEXTURES = {"grass": _grass, "water": _water, "brick": _brick}


def _jitter(rng: np.random.Generator, colour: tuple[float, float, float]) -> Array:
    return np.asarray(colour) * rng.uniform(0.7, 1.3) + rng.uniform(-0.1, 0.1, 3)


def _outline(
    rng: np.random.Generator, name: str, size: int, extents: tuple[float, float]
) -> tuple[tuple[slice, slice], Array]:
    """A thing of random size, place and rotation: its window in the image, and its coverage there, 0..1.

    Its area is that of a square of a side in `extents`, whatever its class.
    """
    extent = rng.uniform(*extents)
    centre_y, centre_x = rng.uniform(0.4 * extent, size - 0.4 * extent, 2)
    rotation = rng.uniform(0, 2 * np.pi)
    radius = extent / np.sqrt(unit_area(name))
    top, left = (max(0, int(c - radius - 1)) for c in (centre_y, centre_x))
    bottom, right = (min(size, int(c + radius + 3)) for c in (centre_y, centre_x))
    y, x = np.mgrid[top:bottom, left:right]
    distance = signed_distance(name, x + 0.5 - centre_x, y + 0.5 - centre_y, radius, rotation)
    return (slice(top, bottom), slice(left, right)), np.clip(0.5 - distance, 0, 1)


# Corners, and radius of the inner corners over that of the outer ones. (For a regular polygon: middle of its sides.)
CORNERS = {"square": (4, np.cos(np.pi / 4)), "triangle": (3, np.cos(np.pi / 3)), "star": (5, 0.45)}


def signed_distance(name: str, x: Array, y: Array, radius: float, rotation: float) -> Array:
    """Compute the signed distance of points to the outline of a thing, negative inside (beyond corners: a bound).

    Squares, triangles and stars are alike after folding: in a sector between a corner and the middle of a side (or a
    star's inner corner), their outline is one straight line.

    Args:
        name: one of `THINGS`.
        x, y: from the thing's centre, in pixels, any shape.
        radius: of the circle around it, in pixels.
        rotation: in radians.
    """
    r = np.hypot(x, y)
    if name == "disc":
        return r - radius
    corners, inner = CORNERS[name]
    half = np.pi / corners
    angle = np.abs((np.arctan2(y, x) - rotation + half) % (2 * half) - half)  # 0 at a corner
    # The line through (1, 0) and inner (cos half, sin half), times `radius`; its normal points outwards.
    normal = np.array([inner * np.sin(half), 1 - inner * np.cos(half)])
    normal /= np.linalg.norm(normal)
    return r * (np.cos(angle) * normal[0] + np.sin(angle) * normal[1]) - radius * normal[0]


def unit_area(name: str) -> float:
    """Return the area of a thing of radius 1."""
    if name == "disc":
        return np.pi
    corners, inner = CORNERS[name]
    return corners * inner * np.sin(np.pi / corners)


def draw_surface(rng: np.random.Generator, name: str, shape: tuple[int, ...], light: float, size: int) -> Array:
    """Return colours (*shape, 3) of a thing: its kind's pattern in two colours, shaded from the direction `light`."""
    y, x = np.mgrid[: shape[0], : shape[1]] / size
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.04, 0.12)
    u = 2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / period
    v = 2 * np.pi * (y * np.cos(turn) - x * np.sin(turn)) / period
    if name == "disc":  # plain
        mix = np.zeros(shape)
    elif name == "square":  # striped
        mix = 0.5 + 0.5 * np.tanh(3 * np.sin(u))
    elif name == "triangle":  # dotted
        mix = 0.5 + 0.5 * np.tanh(4 * (np.sin(u) * np.sin(v) - 0.3))
    else:  # patched
        mix = 0.5 + 0.5 * np.tanh(6 * _smooth_noise(rng, max(shape), 6)[: shape[0], : shape[1]])
    first = rng.uniform(0.05, 1, 3)
    second = (first + rng.uniform(0.15, 0.6) * rng.choice([-1, 1], 3)).clip(0, 1)
    across = (x * np.cos(light) + y * np.sin(light)) * size / max(shape)  # 0..1 from side to side, at most
    return (first + mix[..., None] * (second - first)) * (1 + 0.5 * (across - across.mean()))[..., None]


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Random field (size, size), about 0 +- 0.25, with bumps of `size / cells` pixels: a uniform cubic B-spline."""
    basis = _spline_basis(size, cells)
    return basis @ rng.uniform(-1, 1, (cells + 3, cells + 3)) @ basis.T


@cache
def _spline_basis(size: int, cells: int) -> Array:
    """(size, cells + 3): the cubic B-spline of each control point at each pixel centre."""
    at = (np.arange(size) + 0.5) / size * cells
    d = np.abs(at[:, None] - np.arange(-1, cells + 2))
    return np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)


def _write_split(folder: Path, split: str, parameters: Parameters, progress: bool) -> None:
    for name in (split, f"panoptic_{split}", f"semantic_{split}", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    number = SPLITS.index(split)
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    count = getattr(parameters, split)
    for index in tqdm(range(count), desc=f"Shapes {split}", unit="image", disable=not progress):
        rng = np.random.default_rng([parameters.seed, number, index])
        image, segments, classes = draw(rng, parameters.size, parameters.small)

        image_id = 1 + index + 1_000_000 * number
        name = f"{image_id:012d}"
        ids = 1 + rng.choice(256**3 - 1, len(classes), replace=False)
        segments_info = []
        for k, cls in enumerate(classes):
            category = CATEGORIES[cls]
            mask = encode_mask(segments == k)
            common = {"category_id": category["id"], **area_and_box(mask), "iscrowd": 0}
            segments_info.append({"id": int(ids[k]), **common})
            if category["isthing"]:
                common |= {"id": len(instances) + 1, "image_id": image_id, "segmentation": json_rle(mask)}
                instances.append(common)
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": parameters.size, "width": parameters.size})
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments_info})

        # The last entry of each table is void: segments is -1 there.
        id_map = np.append(ids, 0)[segments]
        rgb = np.stack([id_map % 256, id_map // 256 % 256, id_map // 65536], -1).astype(np.uint8)
        semantic = np.append(classes, VOID).astype(np.uint8)[segments]
        Image.fromarray(image).save(folder / split / f"{name}.jpg", quality=95, subsampling=0)
        Image.fromarray(rgb).save(folder / f"panoptic_{split}" / f"{name}.png")
        Image.fromarray(semantic).save(folder / f"semantic_{split}" / f"{name}.png")

    things = [c for c in CATEGORIES if c["isthing"]]
    for kind, annotations, categories in (("panoptic", panoptic, CATEGORIES), ("instances", instances, things)):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Generate the Shapes data set.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root",
        default=default_root(),
        help="folder to put shapes/ in; by default $DETECTRON2_DATASETS, or else",
    )
    parser.add_argument("--train", type=int, default=DEFAULT.train, help="training images")
    parser.add_argument("--val", type=int, default=DEFAULT.val, help="validation images")
    parser.add_argument("--size", type=int, default=DEFAULT.size, help="height and width, pixels")
    parser.add_argument("--seed", type=int, default=DEFAULT.seed)
    parser.add_argument("--small", action="store_true", help="80 to 150 things of 5 to 15 pixels an image")
    parser.add_argument("--video", metavar="FILE", help="write a video instead")
    parser.add_argument("--frames", type=int, default=100, help="of the video")
    args = parser.parse_args()
    if args.video:
        save_animation(film(np.random.default_rng(args.seed), args.size, args.frames), args.video, fps=25)
        print(args.video)
        return
    folder = generate(args.root, Parameters(args.train, args.val, args.size, args.seed, args.small))
    print(f"{folder}: {args.train} training and {args.val} validation images")
