"""Every config key that dformer adds to Detectron2's, its default and its meaning.

Keys of Detectron2 keep their meaning: `MODEL.RESNETS`, `DATASETS`, `DATALOADER`, `SOLVER`, `INPUT.MIN_SIZE_TEST`, ...
"""

import math
import os
import re
import shlex
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.utils.file_io import PathManager

from dformer.errors import UserError, did_you_mean


def get_cfg() -> CN:
    """Detectron2's default config with dformer's keys."""
    cfg = get_detectron2_cfg()
    add_dformer_config(cfg)
    return cfg


def add_dformer_config(cfg: CN) -> None:
    """Add dformer's keys to `cfg`, in place."""
    # Operations that give the same bits at each run. A run in pieces is then bit for bit the run in one go on CPUs.
    cfg.DETERMINISTIC = False
    # Minutes that a process waits for the others, after which the run ends with the names of those that did not come.
    cfg.COLLECTIVE_TIMEOUT = 30.0

    cfg.MODEL.META_ARCHITECTURE = "DFormer"  # or "Mask2Former"
    # Classes, things and stuff together. 0: as many as the first training data set has.
    cfg.MODEL.NUM_CLASSES = 0
    # Their names, and the ids of those that are things. Empty: of the first training data set. Training writes them
    # into config.yaml and checkpoints, which so can be used where the data set is not.
    cfg.MODEL.CLASSES = ()
    cfg.MODEL.THINGS = ()
    # MODEL.WEIGHTS is a file, detectron2://..., https://..., timm://<pretrained model> or dformer://<shipped model>:
    # checkpoints of ours, of the published DFormer and Mask2Former, or ImageNet backbones. False: load what fits, and
    # only tell what does not.
    cfg.MODEL.WEIGHTS_STRICT = True
    # Decay of a moving average of the weights, which is saved beside them and evaluated in their place; 0: none. 0.9999
    # averages over some 10,000 steps.
    cfg.MODEL.EMA_DECAY = 0.0
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # of ImageNet, RGB, 0..255
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    # Images are padded so that both sides divide by this: the largest stride of the pyramid.
    cfg.MODEL.SIZE_DIVISIBILITY = 32

    # Any timm model with `features_only`; taken when MODEL.BACKBONE.NAME is "build_timm_backbone".
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "swin_tiny_patch4_window7_224"
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0  # stochastic depth; ResNet-like models take it too

    # Backbone features -> pyramid of strides 32, 16, 8 and a pixel embedding of stride 4.
    cfg.MODEL.PIXEL_DECODER = CN()
    cfg.MODEL.PIXEL_DECODER.NAME = "MSDeformAttnPixelDecoder"  # or "FPNPixelDecoder"
    cfg.MODEL.PIXEL_DECODER.CONV_DIM = 256  # channels of the pyramid
    cfg.MODEL.PIXEL_DECODER.MASK_DIM = 256  # channels of the pixel embedding
    cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 6  # deformable encoder layers
    cfg.MODEL.PIXEL_DECODER.NUM_HEADS = 8
    cfg.MODEL.PIXEL_DECODER.NUM_POINTS = 4  # sampling points a head and level
    cfg.MODEL.PIXEL_DECODER.FFN_DIM = 1024

    # The masked-attention decoder, of DFormer and of Mask2Former.
    cfg.MODEL.MASK_DECODER = CN()
    cfg.MODEL.MASK_DECODER.NUM_QUERIES = 100  # masks: noisy ones (DFormer) or learned queries (Mask2Former)
    cfg.MODEL.MASK_DECODER.HIDDEN_DIM = 256
    cfg.MODEL.MASK_DECODER.NUM_HEADS = 8
    cfg.MODEL.MASK_DECODER.FFN_DIM = 2048
    cfg.MODEL.MASK_DECODER.NUM_LAYERS = 9  # the published configs count one more: DEC_LAYERS 10

    # Matching and loss.
    cfg.MODEL.CRITERION = CN()
    cfg.MODEL.CRITERION.CLASS_WEIGHT = 2.0
    cfg.MODEL.CRITERION.MASK_WEIGHT = 5.0
    cfg.MODEL.CRITERION.DICE_WEIGHT = 5.0
    cfg.MODEL.CRITERION.NO_OBJECT_WEIGHT = 0.1  # of the class "no object" in the cross-entropy
    cfg.MODEL.CRITERION.NUM_POINTS = 12544  # points a mask at which matching and mask losses are computed
    cfg.MODEL.CRITERION.OVERSAMPLE_RATIO = 3.0  # candidates a point, of which the uncertain ones are kept
    cfg.MODEL.CRITERION.IMPORTANCE_SAMPLE_RATIO = 0.75  # share of the points that are chosen by uncertainty

    # The diffusion process over masks.
    cfg.DIFFUSION = CN()
    cfg.DIFFUSION.TIMESTEPS = 1000  # T
    cfg.DIFFUSION.SCHEDULE = "cosine"  # "cosine", "linear" or "scaled_linear"
    cfg.DIFFUSION.SIGNAL_SCALE = 0.1  # b: masks {0, 1} become {-b, b}
    cfg.DIFFUSION.ENCODING = "binary"  # or "random": inside from [0.5, 1], outside from [0, 0.5]
    cfg.DIFFUSION.MASK_STRIDE = 4  # image pixels a noise pixel; 1 as published
    cfg.DIFFUSION.SAMPLING_STEPS = 1
    cfg.DIFFUSION.ETA = 1.0  # 0: DDIM, deterministic after the first noise; 1: DDPM
    cfg.DIFFUSION.SEED = 0  # of the noise at inference

    # Own data sets, to be named in TRAIN and TEST: `{name: {form: ..., images: ..., annotations: ...}}`, or YAML files
    # of such declarations (datasets/README.md).
    cfg.DATASETS.CUSTOM = ()
    # Images of each data set that are checked before the first step (tools/check_dataset.py checks all). 0: no check.
    cfg.DATASETS.CHECK_IMAGES = 200

    # Images or annotations that may turn out unreadable in training, in each process: others are taken in their place.
    # One more, and training stops. In evaluation, the first one does.
    cfg.DATALOADER.MAX_UNREADABLE = 10

    # Training data. INPUT.TASK says what a training target is, INPUT.AUGMENTATION how images are varied.
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.TASK = "panoptic"  # or "instance", "semantic"
    # "lsj": large-scale jitter, scaled by MIN_SCALE..MAX_SCALE of IMAGE_SIZE, then cropped or padded to that square;
    # "crop": short side from MIN_SIZE_TRAIN, then a crop of CROP.SIZE (the ADE20K recipe); "resize": short side only.
    cfg.INPUT.AUGMENTATION = "lsj"
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    cfg.INPUT.COLOR_AUG_SSD = False  # brightness, contrast, saturation and hue, as in SSD
    # "crop" only: a crop is drawn again while one category covers more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0

    # Solver.
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone / BASE_LR
    # "WarmupMultiStepLR" (SOLVER.STEPS, GAMMA), "WarmupCosineLR" or "WarmupPolyLR" (POLY_POWER), to 0 at MAX_ITER
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.POLY_POWER = 0.9
    cfg.SOLVER.WARMUP_FACTOR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # norm of all gradients together
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    cfg.SOLVER.CHECKPOINT_KEEP = 3  # of the checkpoints each CHECKPOINT_PERIOD, the newest are kept; 0: all
    cfg.SOLVER.AMP.DTYPE = "float16"  # or "bfloat16", which needs no loss scaling; when SOLVER.AMP.ENABLED

    # Every so many steps (Detectron2's VIS_PERIOD, 0: never) TensorBoard gets pictures of the first two images of the
    # test set, or the training set: as annotated, their masks as noise makes them, as predicted.

    # Inference and evaluation.
    cfg.TEST.TASKS = ("panoptic", "instance", "semantic")  # results that are computed and, where annotated, evaluated
    cfg.TEST.OBJECT_THRESHOLD = 0.8  # panoptic: masks with a lower class score are dropped
    cfg.TEST.OVERLAP_THRESHOLD = 0.8  # panoptic: masks of which less than this share stays visible are dropped
    # With EVAL_PERIOD, model_best.pth is kept: by PQ, PQ_things, PQ_stuff, AP or mIoU on the first of DATASETS.TEST.
    cfg.TEST.BEST_METRIC = ""  # empty: PQ, AP or mIoU, the first that is measured
    cfg.TEST.BOUNDARY = False  # also boundary AP and boundary IoU
    cfg.TEST.CLASS_AGNOSTIC = False  # also PQ of segments whatever their class
    # Detectron2's TEST.AUG (MIN_SIZES, MAX_SIZE, FLIP) is for semantic segmentation alone; class scores are averaged.


# What numbers may be; the upper ends are far beyond use, and keep a config of a stranger from taking all memory.
RANGES: dict[str, tuple[float, float]] = {
    "MODEL.NUM_CLASSES": (0, 100_000),
    "MODEL.SIZE_DIVISIBILITY": (1, 1024),
    "MODEL.PIXEL_DECODER.CONV_DIM": (32, 8192),
    "MODEL.PIXEL_DECODER.MASK_DIM": (1, 8192),
    "MODEL.PIXEL_DECODER.NUM_LAYERS": (0, 100),
    "MODEL.PIXEL_DECODER.NUM_HEADS": (1, 256),
    "MODEL.PIXEL_DECODER.NUM_POINTS": (1, 64),
    "MODEL.PIXEL_DECODER.FFN_DIM": (1, 65536),
    "MODEL.MASK_DECODER.NUM_QUERIES": (1, 10_000),
    "MODEL.MASK_DECODER.HIDDEN_DIM": (2, 8192),
    "MODEL.MASK_DECODER.NUM_HEADS": (1, 256),
    "MODEL.MASK_DECODER.FFN_DIM": (1, 65536),
    "MODEL.MASK_DECODER.NUM_LAYERS": (1, 100),
    "MODEL.CRITERION.CLASS_WEIGHT": (0, 1e6),
    "MODEL.CRITERION.MASK_WEIGHT": (0, 1e6),
    "MODEL.CRITERION.DICE_WEIGHT": (0, 1e6),
    "MODEL.CRITERION.NO_OBJECT_WEIGHT": (0, 1e6),
    "MODEL.CRITERION.NUM_POINTS": (1, 10_000_000),
    "MODEL.CRITERION.OVERSAMPLE_RATIO": (1, 100),
    "MODEL.CRITERION.IMPORTANCE_SAMPLE_RATIO": (0, 1),
    "DIFFUSION.TIMESTEPS": (1, 1_000_000),
    "DIFFUSION.SIGNAL_SCALE": (1e-6, 1e6),
    "DIFFUSION.MASK_STRIDE": (1, 64),
    "DIFFUSION.SAMPLING_STEPS": (1, 1_000_000),
    "DIFFUSION.ETA": (0, 1),
    "DATASETS.CHECK_IMAGES": (0, math.inf),
    "DATALOADER.NUM_WORKERS": (0, 1024),
    "DATALOADER.MAX_UNREADABLE": (0, math.inf),
    "INPUT.IMAGE_SIZE": (1, 16384),
    "INPUT.MIN_SCALE": (1e-3, 100),
    "INPUT.MAX_SCALE": (1e-3, 100),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": (0, 1),
    "SOLVER.IMS_PER_BATCH": (1, 1_000_000),
    "SOLVER.MAX_ITER": (0, 1e12),
    "SOLVER.BASE_LR": (0, 1e6),
    "SOLVER.WEIGHT_DECAY": (0, 1e6),
    "SOLVER.BACKBONE_MULTIPLIER": (0, 1e6),
    "SOLVER.WARMUP_ITERS": (0, 1e12),
    "SOLVER.CHECKPOINT_PERIOD": (1, 1e12),
    "TEST.OBJECT_THRESHOLD": (0, 1),
    "TEST.OVERLAP_THRESHOLD": (0, 1),
    "TEST.DETECTIONS_PER_IMAGE": (1, 1_000_000),
    "TEST.EVAL_PERIOD": (0, 1e12),
    "VIS_PERIOD": (0, 1e12),
}
MAX_YAML = 4 << 20  # characters
MAX_DEPTH = 100
MAX_VALUES = 200_000  # counted as often as an alias stands for them


def merge_config(cfg: CN, config_file: str | None, opts: list[str]) -> None:
    """Merge a YAML file (or none) and `KEY VALUE` overrides into `cfg`.

    Raises:
        UserError: the file is missing or not YAML, a key does not exist (the nearest one is named), or a value is of
            the wrong type or out of range.
    """
    if config_file:
        _check_files(config_file)
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except FileNotFoundError as error:
            raise UserError(f"config file {error.filename} does not exist") from error
        except Exception as error:
            raise UserError(f"{config_file}: {_explain(cfg, error)}") from error
    options = [word for word in opts if word.startswith("--")]
    if options:
        raise UserError(f"{options[0]} stands among the KEY VALUE overrides; options go before them")
    if len(opts) % 2:
        raise UserError(f'overrides are pairs "KEY VALUE", got {len(opts)} words: {" ".join(opts)}')
    try:
        cfg.merge_from_list(opts)
    except Exception as error:
        raise UserError(_explain(cfg, error)) from error
    check_values(cfg)


def merge_text(cfg: CN, text: str, where: str) -> None:
    """Merge YAML into `cfg`, such as the config in a checkpoint.

    Raises:
        UserError: as `merge_config`, but for files.
    """
    try:
        cfg.merge_from_other_cfg(CN(read_yaml(text, where)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {_explain(cfg, error)}") from error
    check_values(cfg)


def check_values(cfg: CN) -> None:
    """Check the numbers that have a range, and those that have to fit each other.

    Raises:
        UserError: one does not; the key is named.
    """
    for key, (low, high) in RANGES.items():
        value = _value(cfg, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{key} is {value!r}, but must be a number in {low:g}..{high:g}")
    decoder, pixels = cfg.MODEL.MASK_DECODER, cfg.MODEL.PIXEL_DECODER
    for name, width, heads in (
        ("MODEL.MASK_DECODER.HIDDEN_DIM", decoder.HIDDEN_DIM, decoder.NUM_HEADS),
        ("MODEL.PIXEL_DECODER.CONV_DIM", pixels.CONV_DIM, pixels.NUM_HEADS),
    ):
        if width % heads:
            raise UserError(f"{name} is {width}, which its NUM_HEADS, {heads}, does not divide")


def read_yaml(text: str, where: str) -> Any:
    """What YAML says, as plain values.

    Raises:
        UserError: it is not YAML, or too large; `where` is named.
    """
    try:
        if len(text) > MAX_YAML:
            raise UserError(f"{where} is too large for a config: {len(text)} characters")
        if _depth(text) > MAX_DEPTH:
            raise UserError(f"{where} is nested too deeply for a config")
        value = yaml.safe_load(text)
    except UserError:
        raise
    except Exception as error:  # beside its own errors, what a constructor of dates or numbers raises
        raise UserError(f"{where} cannot be read as YAML: {_first_line(error)}") from error
    # An alias costs nothing in memory, but all that walks through the values meets them again and again.
    left, found = [value], 0
    while left:
        entry = left.pop()
        found += 1
        if found > MAX_VALUES:
            raise UserError(f"{where} is too large for a config: its aliases (*name) stand for too many values")
        left += [*entry, *entry.values()] if isinstance(entry, dict) else entry if isinstance(entry, list) else []
    return value


def _depth(text: str) -> int:
    """How deep the brackets of a text are nested: PyYAML needs a minute for some thousands."""
    steps = (1 if mark in "[{" else -1 for mark in re.findall(r"[][{}]", text))
    return max(accumulate(steps), default=0)


def _check_files(config_file: str) -> None:
    """Read a config file and those that it is based on, before Detectron2 does, which sets no limits."""
    seen: list[str] = []
    file: Any = config_file
    while isinstance(file, str):
        if file in seen or len(seen) == 100:
            raise UserError(f"{config_file} is based on itself: _BASE_ leads from {seen[-1]} to {file}")
        seen.append(file)
        try:
            text = Path(PathManager.get_local_path(file)).read_text()
        except FileNotFoundError as error:
            raise UserError(f"config file {file} does not exist") from error
        except (OSError, ValueError) as error:
            raise UserError(f"config file {file} cannot be read: {error}") from error
        content = read_yaml(text, file)
        if not isinstance(content, dict):
            raise UserError(f"config file {file} holds no `KEY: value` pairs")
        base = content.get("_BASE_")
        file = base
        if isinstance(base, str):
            base = os.path.expanduser(base)
            is_absolute = base.startswith(("/", "https://", "http://"))
            file = base if is_absolute else os.path.join(os.path.dirname(seen[-1]), base)


def config_text(cfg: CN) -> str:
    """The cfg as YAML, with the command that this process was started with as its first line, a comment."""
    return f"# {shlex.join(['python', *sys.argv])}\n{cfg.dump()}"


def _value(cfg: CN, key: str) -> Any:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _explain(cfg: CN, error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    if "Non-existent" in text:
        key = text.rsplit(":", 1)[-1].strip()
        return f'there is no config key "{key}"{did_you_mean(key, _keys(cfg))} (all keys: dformer/d2/config.py)'
    return text or type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _keys(node: CN, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, CN) else [prefix + name]
    return keys
