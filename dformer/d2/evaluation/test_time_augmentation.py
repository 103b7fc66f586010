"""Test-time augmentation for semantic segmentation, over scales and flips."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import HFlipTransform
from detectron2.modeling import DatasetMapperTTA
from torch import Tensor, nn

from dformer.utils.errors import UserError


def augment(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model as it is evaluated: `model` or, with TEST.AUG.ENABLED, a `SemanticTTA` around it.

    Raises:
        UserError: as `check_augmentation`.
    """
    check_augmentation(cfg)
    return SemanticTTA(cfg, model) if cfg.TEST.AUG.ENABLED else model


def check_augmentation(cfg: CfgNode) -> None:
    """Check that TEST.AUG fits the tasks.

    Raises:
        UserError: it is enabled with other tasks than semantic segmentation, or without a size.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    if tuple(cfg.TEST.TASKS) != ("semantic",):
        raise UserError(
            "TEST.AUG.ENABLED: class scores can be averaged over scales and flips, masks of objects cannot; evaluate "
            f"with TEST.TASKS ('semantic',) instead of {tuple(cfg.TEST.TASKS)}, or without TEST.AUG"
        )
    if not cfg.TEST.AUG.MIN_SIZES:
        raise UserError("TEST.AUG.MIN_SIZES is empty; name at least one length of the short side, in pixels")


class SemanticTTA(nn.Module):
    """Mean of the class scores over TEST.AUG.MIN_SIZES and, with TEST.AUG.FLIP, over the image and its mirror image.

    As the published Mask2Former does it (but that resizes the image as it is, not one that was resized for the test).
    Inputs and outputs are those of a `Segmenter`, of which `sem_seg` remains.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.augmentations = DatasetMapperTTA(cfg)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Results of a batch, image by image and view by view: all views of one would need the memory of a batch."""
        return [{"sem_seg": self.mean_scores(item)} for item in batched_inputs]

    @torch.no_grad()
    def mean_scores(self, item: dict[str, Any]) -> Tensor:
        """Class scores (K, height, width) of an image."""
        height, width = item["image"].shape[1:]
        views = self.augmentations({"height": height, "width": width} | item)
        total = self.scores(views[0])
        for view in views[1:]:
            total = total + self.scores(view)
        return total / len(views)

    def scores(self, view: dict[str, Any]) -> Tensor:
        """Class scores of a view, as they lie in the image."""
        scores = self.model([view])[0]["sem_seg"]
        mirrored = any(isinstance(t, HFlipTransform) for t in view["transforms"].transforms)
        return scores.flip(-1) if mirrored else scores
