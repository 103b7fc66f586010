"""A DFormer that runs in milliseconds, images for it, and order after a run in the tests' own process."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.logger import setup_logger
from torch import Tensor, nn

from dformer.apps import shapes
from dformer.d2.config import get_cfg
from dformer.d2.data import register_shapes

CONFIG = """
VERSION: 2
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: TinyBackbone}
  PIXEL_DECODER: {CONV_DIM: 32, MASK_DIM: 32, NUM_LAYERS: 1, NUM_HEADS: 4, FFN_DIM: 64}
  MASK_DECODER: {NUM_QUERIES: 8, HIDDEN_DIM: 32, NUM_HEADS: 4, FFN_DIM: 64, NUM_LAYERS: 2}
  CRITERION: {NUM_POINTS: 128}
DATASETS: {TRAIN: [shapes_train], TEST: [shapes_val]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {IMAGE_SIZE: 64, MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2}
SEED: 3
"""

MASK_AUTOENCODER = """
INPUT: {TARGET: panoptic_map}
MODEL:
  MASK_AUTOENCODER: {NUM_BITS: 3, CHANNELS: [8, 8, 8], HIDDEN_CHANNELS: 8, UPSCALE_CHANNELS: 8, UPSCALERS: 1, GROUPS: 4}
"""

# What a system needs beside this.
OF_SYSTEM = {
    "DiffusionInst": """
MODEL:
  ROI_DECODER: {NUM_PROPOSALS: 8, NUM_STAGES: 2, HIDDEN_DIM: 32, NUM_HEADS: 4, FFN_DIM: 64, DYNAMIC_DIM: 8}
  MASK_BRANCH: {DIM: 32, CHANNELS: 4, NUM_CONVS: 1, NORM: GN}
DIFFUSION: {SIGNAL_SCALE: 2.0}
INPUT: {TASK: instance, TARGET: boxes}
TEST: {TASKS: [instance]}
""",
    "MaskAutoencoder": MASK_AUTOENCODER
    + """
TEST: {TASKS: [panoptic], WITH_TARGETS: True, OBJECT_THRESHOLD: 0.0, OVERLAP_THRESHOLD: 0.0}
""",
    "LDMSeg": MASK_AUTOENCODER
    + """
  LDMSEG: {IMAGE_CHANNELS: 8, UNET_CHANNELS: [16, 16], UNET_ATTENTION: [False, True], UNET_LAYERS: 1, UNET_HEADS: 2,
    UNET_GROUPS: 4, PIXEL_WEIGHT: 1.0, KNOWN_SHARE: 0.5}
DIFFUSION: {SCHEDULE: scaled_linear, SIGNAL_SCALE: 1.0, SAMPLING_STEPS: 2}
TEST: {OBJECT_THRESHOLD: 0.0, OVERLAP_THRESHOLD: 0.0}
""",
}


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    """Strided convolutions: res2 .. res5 of strides 4 .. 32, those of MODEL.TIMM.OUT_FEATURES."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        stages = {"res2": nn.Conv2d(3, 16, 4, 4)} | {f"res{i}": nn.Conv2d(16, 16, 2, 2) for i in (3, 4, 5)}
        self.stages = nn.ModuleDict({name: stages[name] for name in cfg.MODEL.TIMM.OUT_FEATURES})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name, stage in self.stages.items():
            x = maps[name] = nn.functional.gelu(stage(x))
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=16, stride=2**i) for i, name in enumerate(self.stages, start=2)}


def tiny_cfg(meta_architecture: str = "DFormer", opts: Sequence[str] = ()) -> CfgNode:
    """On Shapes' classes, 64 x 64 images, the CPU."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(CONFIG)))
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(OF_SYSTEM.get(meta_architecture, "{}"))))
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.merge_from_list(list(opts))
    return cfg


def random_model(file: Path, meta_architecture: str = "DFormer", opts: Sequence[str] = ()) -> CfgNode:
    """Return the config of a tiny model whose queries all detect something, and write its checkpoint to `file`."""
    cfg = tiny_cfg(meta_architecture, opts)
    cfg.MODEL.WEIGHTS = str(file)
    cfg.TEST.OBJECT_THRESHOLD = cfg.TEST.OVERLAP_THRESHOLD = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    model.head.mask_decoder.class_embed.bias.data[-1] = -10
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, file)
    return cfg


def small_shapes(folder: Path, name: str, **counts: int) -> None:
    """Generate 64 x 64 images of Shapes in `folder`, and register `<name>_train` and `<name>_val`."""
    shapes.generate(folder, shapes.Parameters(size=64, **counts), progress=False)
    register_shapes(folder, name)


def tiny_batch(counts: tuple[int, ...], side: int = 64) -> list[dict]:
    """Square images with so many rectangles each; the same at each call."""
    batch = []
    for image_id, count in enumerate(counts):
        generator = torch.Generator().manual_seed(image_id)
        instances = Instances((side, side))
        instances.gt_classes = torch.randint(4, (count,), generator=generator)
        instances.gt_masks = torch.zeros(count, side, side, dtype=torch.bool)
        for mask in instances.gt_masks:
            top, left = torch.randint(side - 24, (2,), generator=generator).tolist()
            mask[top : top + 20, left : left + 12] = True
        instances.gt_boxes = BitMasks(instances.gt_masks).get_bounding_boxes()
        panoptic_map = torch.zeros(side, side, dtype=torch.int64)
        for number, mask in enumerate(instances.gt_masks, start=1):
            panoptic_map[mask] = number
        image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=generator)
        targets = {"instances": instances, "panoptic_map": panoptic_map}
        batch.append({"image": image, "image_id": image_id, "height": side, "width": side, **targets})
    return batch


@contextmanager
def own_loggers() -> Iterator[None]:
    """Take back what a run does to the loggers: they would write to closed files and hide from `caplog`."""
    yield
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "dformer"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
