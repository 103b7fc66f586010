#!/usr/bin/env python3
"""Moving Shapes: generated clips with classes and ids for each pixel, in the layout of DAVIS.

The things and stuff of shapes.py; things move, turn, grow and shrink, occlude each other, leave the picture and return;
some are hidden for 1, 2, 5 or 10 frames; the camera moves, too. An object keeps its id.

    python datasets/moving_shapes.py --clips 100 --frames 12

writes

    <root>/moving_shapes/
        JPEGImages/<clip>/00000.jpg ...
        Annotations/<clip>/00000.png ...       ids of things, 0: none; indexed colours, as DAVIS
        Panoptic/<clip>/00000.png ...          red: class, 256 * green + blue: id; as KITTI-STEP

the data set `moving_shapes`; to train on others, `--name moving_shapes_train --seed 1`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from dformer.apps.shapes import THINGS, Array, draw_stuff, draw_surface, signed_distance, unit_area
from dformer.data.prepare import default_root
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import atomic_folder
from dformer.visualize.color import class_color

NAMES = ("moving_shapes", "moving_shapes_train")
HIDDEN = (1, 2, 5, 10)  # frames
MARGIN = 0.5  # of the size: how far the camera can go
UInt8 = NDArray[np.uint8]


class Thing(NamedTuple):
    """Hold a thing and how it moves; lengths in pixels, angles in radians, all per frame where they are speeds."""

    kind: int
    surface: Array  # (P, P, 3), around its centre
    radius: float
    centre: Array  # (y, x) in the first frame
    velocity: Array
    rotation: float
    spin: float
    pulse: float  # of the radius
    hidden: range  # frames


def clip(rng: np.random.Generator, size: int, frames: int) -> Iterator[tuple[UInt8, UInt8, UInt8]]:
    """Yield the frames of a clip: RGB (size, size, 3), ids of things from 1 and classes (size, size)."""
    scene, stuff = draw_stuff(rng, round(size * (1 + MARGIN)))
    free = len(scene) - size
    light, phase = rng.uniform(0, 2 * np.pi, 2)
    things = [_thing(rng, size, frames, light) for _ in range(rng.integers(2, 7))]
    for t in range(frames):
        angle = phase + 0.15 * t
        top, left = (round(free * (1 + offset) / 2) for offset in (np.sin(angle), np.cos(angle)))
        image = scene[top : top + size, left : left + size].copy()
        classes = (len(THINGS) + stuff[top : top + size, left : left + size]).astype(np.uint8)
        ids = np.zeros_like(classes)
        for number, thing in enumerate(things, start=1):
            if t not in thing.hidden:
                coverage, colours = _rendered(thing, t, size)
                image += coverage[..., None] * (colours - image)
                ids[coverage > 0.5], classes[coverage > 0.5] = number, thing.kind
        image += rng.normal(0, 0.012, image.shape)
        yield (image.clip(0, 1) * 255).round().astype(np.uint8), ids, classes


def _thing(rng: np.random.Generator, size: int, frames: int, light: float) -> Thing:
    kind = int(rng.integers(len(THINGS)))
    radius = rng.uniform(size / 8, size / 3) / np.sqrt(unit_area(THINGS[kind]))
    surface = draw_surface(rng, THINGS[kind], (2 * int(1.5 * radius + 3),) * 2, light, size)
    start, gap = int(rng.integers(1, max(frames, 2))), int(rng.choice(HIDDEN)) if rng.random() < 0.3 else 0
    speeds = rng.normal(0, 0.02 * size, 2), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.06), rng.normal(0, 0.15)
    velocity, rotation, spin, pulse = speeds
    return Thing(
        kind, surface, radius, rng.uniform(0, size, 2), velocity, rotation, spin, pulse, range(start, start + gap)
    )


def _rendered(thing: Thing, t: int, size: int) -> tuple[Array, Array]:
    """Coverage (size, size), 0..1, and colours (size, size, 3) of a thing in frame t."""
    scale = 1 + 0.3 * np.sin(thing.pulse * t)
    turn = thing.rotation + thing.spin * t
    y, x = np.mgrid[:size, :size] + 0.5 - (thing.centre + thing.velocity * t)[:, None, None]
    distance = signed_distance(THINGS[thing.kind], x, y, thing.radius * scale, turn)
    u, v = (x * np.cos(turn) + y * np.sin(turn)) / scale, (y * np.cos(turn) - x * np.sin(turn)) / scale
    at = np.stack([v, u]) + len(thing.surface) / 2 - 0.5
    colours = [map_coordinates(channel, at, order=1, mode="nearest") for channel in np.moveaxis(thing.surface, 2, 0)]
    return np.clip(0.5 - distance, 0, 1), np.stack(colours, -1)


def generate(root: str | Path, clips: int, frames: int, size: int, seed: int, name: str = "moving_shapes") -> Path:
    """Write the clips to `<root>/<name>`, and return that folder; clip i depends on (seed, i) alone.

    Raises:
        UserError: a parameter is out of range, or the folder exists.
    """
    folder = Path(root) / name
    if clips < 1 or frames < 1 or size < 32:
        raise UserError(f"Moving Shapes needs clips, frames and a size of at least 32, got {clips}, {frames}, {size}")
    if folder.exists():
        raise UserError(f"{folder} exists; move it away or choose another root")
    palette = [channel for i in range(256) for channel in (class_color(i) if i else (0, 0, 0))]
    with atomic_folder(folder) as new:
        for number in tqdm(range(clips), desc="Moving Shapes", unit="clip"):
            places = [new / kind / f"{number:05d}" for kind in ("JPEGImages", "Annotations", "Panoptic")]
            for place in places:
                place.mkdir(parents=True)
            for t, (image, ids, classes) in enumerate(clip(np.random.default_rng([seed, number]), size, frames)):
                indexed = Image.fromarray(ids, "P")
                indexed.putpalette(palette)
                Image.fromarray(image).save(places[0] / f"{t:05d}.jpg", quality=95, subsampling=0)
                indexed.save(places[1] / f"{t:05d}.png")
                panoptic = np.stack([classes, np.zeros_like(ids), ids], axis=2)
                Image.fromarray(panoptic).save(places[2] / f"{t:05d}.png")
    return folder


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Generate Moving Shapes.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options: dict[str, Any] = {"clips": 100, "frames": 12, "size": 128, "seed": 0}
    parser.add_argument("--root", default=default_root(), help="folder to put the data set's in")
    for key, value in options.items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--name", default="moving_shapes", choices=NAMES, help="of the data set, one to test on")
    args = parser.parse_args()
    print(generate(args.root, args.clips, args.frames, args.size, args.seed, args.name))


if __name__ == "__main__":
    main()
