"""Test-time augmentation for semantic segmentation, over scales and flips."""

from functools import reduce
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import HFlipTransform
from detectron2.modeling import DatasetMapperTTA
from torch import Tensor, nn

from dformer.utils.errors import UserError


def augment(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return the model as it is evaluated: `model` or, with TEST.AUG.ENABLED, a `SemanticTTA` around it."""
    check_augmentation(cfg)
    return SemanticTTA(cfg, model) if cfg.TEST.AUG.ENABLED else model


def check_augmentation(cfg: CfgNode) -> None:
    """Check that TEST.AUG, where enabled, is for semantic segmentation alone, and has a size."""
    if cfg.TEST.AUG.ENABLED and tuple(cfg.TEST.TASKS) != ("semantic",):
        raise UserError(
            "TEST.AUG.ENABLED: class scores can be averaged over scales and flips, masks of objects cannot; evaluate "
            f"with TEST.TASKS ('semantic',) instead of {tuple(cfg.TEST.TASKS)}, or without TEST.AUG"
        )
    if cfg.TEST.AUG.ENABLED and not cfg.TEST.AUG.MIN_SIZES:
        raise UserError("TEST.AUG.MIN_SIZES is empty; name at least one length of the short side, in pixels")


class SemanticTTA(nn.Module):
    """Average the class scores over TEST.AUG.MIN_SIZES and, with TEST.AUG.FLIP, over the image and its mirror image.

    As the published Mask2Former does it (but that resizes the original image, not one already resized for the test).
    Inputs and outputs are those of a `Segmenter`, but for `sem_seg` only.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.augmentations = DatasetMapperTTA(cfg)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Return the mean class scores (K, height, width) of each image. Views run one by one, to save memory."""
        results = []
        for item in batched_inputs:
            height, width = item["image"].shape[1:]
            views = self.augmentations({"height": height, "width": width} | item)
            results.append({"sem_seg": reduce(torch.add, map(self._scores, views)) / len(views)})
        return results

    def _scores(self, view: dict[str, Any]) -> Tensor:
        """Return the class scores of a view, flipped back to the image."""
        scores = self.model([view])[0]["sem_seg"]
        is_flipped = any(isinstance(t, HFlipTransform) for t in view["transforms"].transforms)
        return scores.flip(-1) if is_flipped else scores
