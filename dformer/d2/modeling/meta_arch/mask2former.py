"""The meta-architecture "Mask2Former"."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from dformer.d2.modeling.meta_arch.build import build_parts
from dformer.d2.modeling.meta_arch.query_segmenter import QuerySegmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.meta_arch.step import Request
from dformer.losses.criterion import Target
from dformer.models.mask2former import Mask2FormerHead
from dformer.models.mask_decoder import Prediction


@META_ARCH_REGISTRY.register()
class Mask2Former(QuerySegmenter):
    """Segment by learned queries (Cheng et al. 2022)."""

    head: Mask2FormerHead

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        parts, pixel_decoder, mask_decoder = build_parts(cfg)
        return {**parts, "head": Mask2FormerHead(pixel_decoder=pixel_decoder, mask_decoder=mask_decoder)}

    def training_predictions(
        self, features: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> tuple[list[list[Prediction]], list[Target]]:
        return [self.head(features)], targets

    def predict(
        self, features: list[Tensor], draw_noise: Callable[[], Tensor], request: Request, batch: Batch
    ) -> Iterator[tuple[float | None, Tensor | None, list[Prediction]]]:
        yield None, None, self.head(features, request.proposals)
