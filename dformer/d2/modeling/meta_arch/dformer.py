"""The meta-architecture "DFormer"."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from dformer.d2.modeling.meta_arch.build import build_parts
from dformer.d2.modeling.meta_arch.query_segmenter import QuerySegmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.meta_arch.step import Request
from dformer.losses.criterion import Target
from dformer.models.dformer import ASSIGNMENTS, DFormerHead, MaskDiffusion
from dformer.models.mask_decoder import Prediction
from dformer.signals.masks import downsample, noise_masks, to_unit
from dformer.utils import rng
from dformer.utils.errors import UserError, did_you_mean


@META_ARCH_REGISTRY.register()
class DFormer(QuerySegmenter):
    """Segment by denoising masks (Wang et al. 2023)."""

    head: DFormerHead

    @configurable
    def __init__(self, *, eta: float, **parts: Any) -> None:
        super().__init__(**parts)
        self.eta = eta
        timesteps = self.head.diffusion.timesteps
        self.max_time = timesteps - 1
        self.options = {**self.options, "steps": (1, timesteps), "seed": (0, 2**31 - 1)}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        if cfg.DIFFUSION.ASSIGNMENT not in ASSIGNMENTS:
            nearest = did_you_mean(cfg.DIFFUSION.ASSIGNMENT, ASSIGNMENTS)
            raise UserError(f'DIFFUSION.ASSIGNMENT is "{cfg.DIFFUSION.ASSIGNMENT}"{nearest} (free or denoising)')
        parts, pixel_decoder, mask_decoder = build_parts(cfg)
        diffusion = MaskDiffusion.create(
            schedule=cfg.DIFFUSION.SCHEDULE,
            timesteps=cfg.DIFFUSION.TIMESTEPS,
            scale=cfg.DIFFUSION.SIGNAL_SCALE,
            encoding=cfg.DIFFUSION.ENCODING,
            stride=cfg.DIFFUSION.MASK_STRIDE,
            assignment=cfg.DIFFUSION.ASSIGNMENT,
        )
        head = DFormerHead(pixel_decoder=pixel_decoder, mask_decoder=mask_decoder, diffusion=diffusion)
        return {**parts, "head": head, "eta": cfg.DIFFUSION.ETA}

    def training_predictions(
        self, features: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> tuple[list[list[Prediction]], list[Target]]:
        masks = [target.masks for target in targets]
        if self.head.diffusion.assignment == "free":
            x_t, t = self.head.corrupt(masks, generators)
            return [self.head(features, x_t, t)], targets
        # Each encoded image is decoded twice: from noise, as in the first sampling step, and from hints.
        memory = self.head.encode(features)
        start = torch.full((len(targets),), self.head.diffusion.timesteps - 1, device=self.device)
        found = self.head.denoise(memory, self.draw_noise(features, generators), start)
        x_t, t, owners = self.head.corrupt_hints(found[-1], masks, generators)
        tied = [target._replace(owner=owner) for target, owner in zip(targets, owners, strict=True)]
        return [found, self.head.denoise(memory, x_t, t)], [*targets, *tied]

    def draw_noise(
        self, features: list[Tensor], generators: list[torch.Generator], num_masks: int | None = None
    ) -> Tensor:
        """Draw standard normal noise (B, N, h, w) for images with these features."""
        height, width = (4 * side for side in features[0].shape[-2:])
        shape = self.head.noise_shape(height, width, num_masks)
        return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in generators])

    def predict(
        self, features: list[Tensor], generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float | None, Tensor | None, list[Prediction]]]:
        draw_noise = partial(self.draw_noise, features, generators, request.proposals)
        for step in self.head.sample(features, draw_noise, request.steps, self.eta):
            yield step.t, step.x_t, step.output

    def to_masks(self, x_t: Tensor) -> Tensor:
        return to_unit(x_t, self.head.diffusion.scale)

    def noisy_targets(self, batch: Batch, t: float) -> list[Tensor]:
        """Return each image's masks noised at time `t`, in their order and without padding to N."""
        alpha_bar, timesteps, scale, encoding, stride, _ = self.head.diffusion
        if not 0 <= t < timesteps:
            raise UserError(f"times are 0 to {timesteps - 1} (DIFFUSION.TIMESTEPS), got {t}")
        alpha_bar_t = alpha_bar(torch.tensor(int(t), device=self.device))
        noisy = []
        for item in batch:
            masks = downsample(item["instances"].gt_masks.to(self.device), stride)
            generator = rng.generator(self.device, self.request.seed)
            x_t = noise_masks(masks, alpha_bar_t=alpha_bar_t, scale=scale, encoding=encoding, generator=generator)
            noisy.append(self.to_masks(x_t))
        return noisy
