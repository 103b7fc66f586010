"""Every system, tiny, for the tests that hold for all of them. A new one adds a line to `SYSTEMS`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dformer.d2.modeling.meta_arch import Request, Segmenter
from tests.d2.tiny import tiny_cfg

# Configs for 64 x 64 images of Shapes on the CPU.
SYSTEMS: dict[str, Callable[[], CfgNode]] = {
    "DFormer": partial(tiny_cfg, "DFormer"),
    "Mask2Former": partial(tiny_cfg, "Mask2Former"),
}


def build(system: str) -> Segmenter:
    """Return a system's model, its weights the same at each call."""
    torch.manual_seed(0)
    return build_model(SYSTEMS[system]())


def full_request(model: Segmenter) -> Request:
    """Return a request for all that a system can do, in three steps where it has any."""
    return replace(model.request, tasks=tuple(model.tasks), steps=3 if "steps" in model.options else 1)
