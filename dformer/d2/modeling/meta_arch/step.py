"""What a system is asked for, and what it has found after each step: all that tools know of a system."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dformer.postprocess.view import View


@dataclass(frozen=True)
class Request:
    """Hold what a system is asked for; `Segmenter.options` says which of the numbers it knows, and their ranges.

    Attributes:
        tasks: results to compute, of `dformer.postprocess.TASKS`.
        steps: sampling steps.
        seed: of the noise.
        proposals: masks or boxes that are denoised; None: as many as in training.
        object_threshold: panoptic segments of a lower class score are dropped.
        overlap_threshold: panoptic segments of which less than this share stays visible are dropped.
        tile: side of the tiles that larger images are cut into, in pixels of the model's input; 0: none.
        tile_overlap: of neighbouring tiles, at least, in pixels.
    """

    tasks: tuple[str, ...]
    steps: int = 1
    seed: int = 0
    proposals: int | None = None
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    tile: int = 0
    tile_overlap: int = 0


# Where a cfg has the defaults of a `Request`.
CONFIG_KEYS = {
    "tasks": "TEST.TASKS",
    "steps": "DIFFUSION.SAMPLING_STEPS",
    "seed": "DIFFUSION.SEED",
    "proposals": "MODEL.MASK_DECODER.NUM_QUERIES, or MODEL.ROI_DECODER.NUM_PROPOSALS",
    "object_threshold": "TEST.OBJECT_THRESHOLD",
    "overlap_threshold": "TEST.OVERLAP_THRESHOLD",
    "tile": "TEST.TILE",
    "tile_overlap": "TEST.TILE_OVERLAP",
}


class Layer(NamedTuple):
    """Hold what a decoder layer did with M proposals of an image, over its canvas.

    `attended` (M, h', w') bool: where it looked; `masks` (M, h, w): logits of the masks; `logits` (M, K + 1), the last
    for "no object".
    """

    attended: Tensor
    masks: Tensor
    logits: Tensor


class Output(ABC):
    """Hold what a system has found in one image after a step. Results are computed when somebody asks for them."""

    @property
    def noisy(self) -> Tensor | None:
        """Return what was denoised, as maps (M, h, w) in [0, 1] over the canvas; None without diffusion."""
        return None

    @abstractmethod
    def result(self, view: View) -> dict[str, Any]:
        """Return the results that were asked for, in Detectron2's form (see `Segmenter.forward`)."""

    def visible(self, max_rows: int) -> Tensor:
        """Return at most so many rows of `noisy` that are worth looking at, the most visible first."""
        return torch.arange(0 if self.noisy is None else min(max_rows, len(self.noisy)))

    def layers(self, rows: Tensor) -> Sequence[Layer]:
        """Return what each decoder layer did with these rows; empty where there are no such layers."""
        return ()


@dataclass(frozen=True)
class Step:
    """Hold what is known of a batch after a step.

    Attributes:
        t: time of what was denoised; None without diffusion.
        outputs: one an image.
        views: one an image; they say how maps over the canvas fit the result.
    """

    t: float | None
    outputs: Sequence[Output]
    views: Sequence[View]

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """Return the results of each image."""
        return [output.result(view) for output, view in zip(self.outputs, self.views, strict=True)]
