"""From the numbers of a check to a config to begin with, which says its rules in comments."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dformer.data.checks.findings import CheckedImage
from dformer.utils.errors import UserError
from dformer.utils.files import atomic_write

SMALL = 24  # pixels: the side that most objects need at least in what the model sees
QUERIES = (20, 300)
MAX_SIDE = 512  # pixels, of what the model sees of an image at once
BATCH = 8


@dataclass(frozen=True)
class Numbers:
    """Hold what a suggestion depends on; lengths are in pixels of the files.

    Attributes:
        images: of the training set.
        height, width: medians.
        objects: largest number in an image.
        density: objects in a square pixel.
        side, large: median, and the 95th percentile, of the sides of squares of the objects' areas.
    """

    images: int
    height: int
    width: int
    objects: int
    density: float
    side: float
    large: float

    @classmethod
    def of(cls, images: Sequence[CheckedImage], total: int) -> "Numbers":
        """Return those of the images of a check; raise UserError if none can be read."""
        sizes = [image.size for image in images if image.size]
        if not sizes:
            raise UserError("there is nothing to suggest a config for: no image can be read")
        height, width = (int(np.median(side)) for side in zip(*sizes, strict=True))
        sides = [side for image in images for side in image.sides]
        objects = [len(image.classes) for image in images]
        density = sum(objects) / sum(h * w for h, w in sizes)
        median, large = np.percentile(sides, [50, 95]).tolist() if sides else (min(height, width), max(height, width))
        return cls(total, height, width, max(objects), density, median, large)


def suggest(numbers: Numbers, task: str, names: tuple[str, str], custom: str) -> str:
    """Return a config as YAML.

    Args:
        task: "panoptic", "instance" or "semantic".
        names: of the data sets to train and to test on.
        custom: the file that declares them, relative to the config; "" if they are registered.
    """
    long_side = max(numbers.height, numbers.width)
    fitting = min(1.0, MAX_SIDE / long_side)
    if task != "semantic" and fitting * numbers.side < SMALL * 0.75:
        framing, seen, scale = _in_tiles(numbers)
    else:
        seen = -(-int(long_side * fitting) // 32) * 32
        framing, scale = _whole(seen, long_side), seen / long_side
    expected = min(numbers.objects, 2.5 * numbers.density * (seen / scale) ** 2) if task != "semantic" else 0
    queries = int(np.clip(-(-1.25 * expected // 10) * 10, *QUERIES))
    points = int(np.clip((seen // 4) ** 2 // 2, 512, 12544))
    crops = max(1.0, numbers.height * numbers.width * (scale / seen) ** 2)  # that an image has
    iterations = int(np.clip(-(-numbers.images * crops * 40 / BATCH // 100) * 100, 600, 4000))
    declared = f"\n  CUSTOM: [{custom}]" if custom else ""
    return f"""\
# Suggested for {names[0]}: {numbers.images} images of about {numbers.width} x {numbers.height} pixels, at most \
{numbers.objects} objects in one;
# half of the objects are smaller than {numbers.side:.0f} x {numbers.side:.0f} pixels.
#   dformer train --config-file THIS_FILE OUTPUT_DIR output/{names[0]}
# It is a start that trains on a CPU. With a GPU take a larger backbone and its weights (docs/model_zoo.md).
VERSION: 2
DATASETS:{declared}
  TRAIN: [{names[0]}]
  TEST: [{names[1]}]
MODEL:
  META_ARCHITECTURE: DFormer # or Mask2Former, with WEIGHTS ""
  WEIGHTS: dformer://shapes # a small model that knows outlines; what does not fit begins anew
  BACKBONE: {{NAME: build_timm_backbone}}
  TIMM: {{NAME: resnet10t}} # the backbone of these weights; for photographs and hours of a GPU, build_resnet_backbone
  PIXEL_DECODER: {{CONV_DIM: 64, MASK_DIM: 64, NUM_LAYERS: 1, FFN_DIM: 256}}
  MASK_DECODER:
    HIDDEN_DIM: 64
    FFN_DIM: 256
    NUM_LAYERS: 3
    NUM_QUERIES: {queries} # 1.25 times the objects that the model may see at once, {QUERIES[0]} to {QUERIES[1]}
  CRITERION:
    NUM_POINTS: {points} # for the losses of a mask: half of its cells, which are of 4 x 4 pixels; 512 to 12544
DIFFUSION: {{ASSIGNMENT: denoising, SIGNAL_SCALE: 1.0, SAMPLING_STEPS: 4}} # as these weights were trained
INPUT:
  TASK: {task}
{framing}  RANDOM_FLIP: horizontal # images without an up and down (microscopy, aerial): rotate
SOLVER:
  IMS_PER_BATCH: {BATCH} # if memory is short: ACCUMULATE {BATCH // 2}, the same in parts
  MAX_ITER: {iterations} # 40 times all that there is to see, 600 to 4000; more helps for long
  BASE_LR: 0.0005 # from scratch, with WEIGHTS "": 0.001
  BACKBONE_MULTIPLIER: 1.0
  LR_SCHEDULER_NAME: WarmupPolyLR
  WARMUP_FACTOR: 0.01
  WARMUP_ITERS: 50
  CLIP_GRADIENTS: {{CLIP_VALUE: 0.1}}
TEST:
  TASKS: [{task}]
  EVAL_PERIOD: {iterations // 4} # each also chooses model_best.pth
  OBJECT_THRESHOLD: 0.4 # of panoptic results; raise it for models that are trained for long
  DETECTIONS_PER_IMAGE: {max(100, 2 * numbers.objects)} # of instance results
{_tile_keys(numbers, seen, scale)}SEED: 0
"""


def _whole(seen: int, long_side: int) -> str:
    return f"""\
  AUGMENTATION: lsj # each image whole, resized by a random factor
  IMAGE_SIZE: {seen} # the long side of the images, {long_side}, but at most {MAX_SIDE}
  MIN_SCALE: 0.7
  MAX_SCALE: 1.6
  MIN_SIZE_TEST: {seen}
  MAX_SIZE_TEST: {seen}
"""


def _in_tiles(numbers: Numbers) -> tuple[str, int, float]:
    """Return the keys of INPUT, the side of a tile in what the model sees, and the scale of the images."""
    scale = float(np.clip(round(2 * SMALL * 0.8 / numbers.side) / 2, 1, 4))
    needed = max(4 * scale * numbers.large, 96)
    seen = int(np.clip(-(-needed // 32) * 32, 128, MAX_SIDE))
    framing = f"""\
  # Half of the objects have at most {numbers.side:.0f} pixels a side, few for cells of 4 x 4 pixels. So
  # images are seen in tiles, and enlarged until that is about {SMALL * 0.8:.0f} (docs/fine_tuning.md).
  AUGMENTATION: native # crops; scales are of the image's own size
  IMAGE_SIZE: {seen} # of a crop: four times the large objects, {numbers.large:.0f} pixels in the files
  SCALE_TEST: {scale}
  MIN_SCALE: {0.8 * scale:.2f}
  MAX_SCALE: {1.25 * scale:.2f}
"""
    return framing, seen, scale


def _tile_keys(numbers: Numbers, seen: int, scale: float) -> str:
    if seen >= scale * max(numbers.height, numbers.width):
        return ""
    overlap = min(-(-int(1.2 * scale * numbers.large) // 16) * 16, seen // 2)
    return f"""\
  TILE: {seen} # as the crops of training
  TILE_OVERLAP: {overlap} # a large object and a bit, so that each is whole in a tile
"""


def write_suggestion(
    file: str | Path, numbers: Numbers, task: str, names: tuple[str, str], declared: str | Path | None
) -> None:
    """Write a suggested config to a new file; raise UserError where there is one already.

    `declared` is the file that declares the data sets; other arguments as of `suggest`.
    """
    if Path(file).exists():
        raise UserError(f"{file} exists; name a new file for the suggestion")
    custom = os.path.relpath(declared, Path(file).parent) if declared else ""
    with atomic_write(Path(file)) as new:
        new.write_text(suggest(numbers, task, names, custom))
