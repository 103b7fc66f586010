"""Every system, tiny, for the tests that hold for all of them. A new one adds a line to `SYSTEMS`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dformer.d2.modeling.meta_arch import Request, Segmenter
from tests.d2.tiny import tiny_cfg


def pix2seqd_cfg() -> CfgNode:
    """A Pix2Seq-D of a few thousand parameters."""
    cfg = tiny_cfg("Pix2SeqD")
    sizes = {"ENCODER_DIM": 32, "ENCODER_LAYERS": 1, "ENCODER_HEADS": 4, "ENCODER_FFN_DIM": 64, "FUSE_DIM": 16}
    sizes |= {"UNET_DIM": 16, "UNET_MULTIPLIERS": [1, 2], "DECODER_LAYERS": 1, "DECODER_HEADS": 4}
    cfg.MODEL.PIX2SEQD.update(**sizes, CLASS_BITS=3, ID_BITS=4, NUM_IDS=16)
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4"]
    cfg.INPUT.TARGET, cfg.TEST.OBJECT_THRESHOLD = "panoptic_map", 0.0
    cfg.DIFFUSION.update(MASK_STRIDE=2, ETA=0.0, TIME_DIFFERENCE=1.0)
    return cfg


# Configs for 64 x 64 images of Shapes on the CPU.
SYSTEMS: dict[str, Callable[[], CfgNode]] = {
    "DFormer": partial(tiny_cfg, "DFormer"),
    "DFormer, denoising assignment": partial(tiny_cfg, "DFormer", ["DIFFUSION.ASSIGNMENT", "denoising"]),
    "Mask2Former": partial(tiny_cfg, "Mask2Former"),
    "DiffusionInst": partial(tiny_cfg, "DiffusionInst"),
    "Pix2SeqD": pix2seqd_cfg,
    "MaskAutoencoder": partial(tiny_cfg, "MaskAutoencoder"),
    "LDMSeg": partial(tiny_cfg, "LDMSeg"),
}


def build(system: str) -> Segmenter:
    """Return a system's model, its weights the same at each call."""
    torch.manual_seed(0)
    return build_model(SYSTEMS[system]())


def full_request(model: Segmenter) -> Request:
    """Return a request for all that a system can do, in three steps where it has any."""
    return replace(model.request, tasks=tuple(model.tasks), steps=3 if "steps" in model.options else 1)
