"""The meta-architecture "DFormer"."""

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from dformer.d2.modeling.meta_arch.build import build_parts
from dformer.d2.modeling.meta_arch.segmenter import Segmenter
from dformer.diffusion.sampler import SamplingStep
from dformer.losses.criterion import Target
from dformer.models.dformer import DFormerHead, MaskDiffusion
from dformer.models.mask_decoder import Prediction


@META_ARCH_REGISTRY.register()
class DFormer(Segmenter):
    """Segmentation by denoising masks (Wang et al. 2023)."""

    head: DFormerHead

    @configurable
    def __init__(self, *, sampling_steps: int, eta: float, **parts: Any) -> None:
        super().__init__(**parts)
        self.sampling_steps = sampling_steps
        self.eta = eta

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keywords of `__init__`."""
        parts, pixel_decoder, mask_decoder = build_parts(cfg)
        diffusion = MaskDiffusion.create(
            schedule=cfg.DIFFUSION.SCHEDULE,
            timesteps=cfg.DIFFUSION.TIMESTEPS,
            scale=cfg.DIFFUSION.SIGNAL_SCALE,
            encoding=cfg.DIFFUSION.ENCODING,
            stride=cfg.DIFFUSION.MASK_STRIDE,
        )
        head = DFormerHead(pixel_decoder=pixel_decoder, mask_decoder=mask_decoder, diffusion=diffusion)
        return {**parts, "head": head, "sampling_steps": cfg.DIFFUSION.SAMPLING_STEPS, "eta": cfg.DIFFUSION.ETA}

    def training_predictions(
        self, features: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> list[Prediction]:
        """Predictions from ground truth corrupted at a random time (Alg. 1)."""
        noisy_masks, t = self.head.corrupt([target.masks for target in targets], generators)
        return self.head(features, noisy_masks, t)

    def predict(self, features: list[Tensor], generators: list[torch.Generator]) -> Prediction:
        """The prediction of the last sampling step (Alg. 2)."""
        for step in self.sample(features, generators):  # one at a time: each holds the masks of all queries
            prediction = step.output[-1]
        return prediction

    def sample(
        self, features: list[Tensor], generators: list[torch.Generator]
    ) -> Iterator[SamplingStep[list[Prediction]]]:
        """The sampling steps, one by one, with the predictions of all layers."""
        height, width = (4 * side for side in features[0].shape[-2:])
        shape = self.head.noise_shape(height, width)

        def draw_noise() -> Tensor:
            return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in generators])

        return self.head.sample(features, draw_noise, self.sampling_steps, self.eta)
