"""The meta-architecture "DFormer"."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from dformer.d2.modeling.meta_arch.build import build_parts
from dformer.d2.modeling.meta_arch.query_segmenter import QueryOutput, QuerySegmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.meta_arch.step import Output, Request
from dformer.diffusion.sampler import time_pairs
from dformer.losses.criterion import Target
from dformer.models.dformer import ASSIGNMENTS, DFormerHead, MaskDiffusion
from dformer.models.mask_decoder import Prediction
from dformer.postprocess.known import paste_known, split_known
from dformer.postprocess.view import View, resized_strips
from dformer.signals.hints import FREE, Hints, given_hints
from dformer.signals.masks import downsample, noise_masks, to_unit
from dformer.utils import rng
from dformer.utils.errors import UserError, did_you_mean


@META_ARCH_REGISTRY.register()
class DFormer(QuerySegmenter):
    """Segment by denoising masks (Wang et al. 2023)."""

    head: DFormerHead

    @configurable
    def __init__(self, *, eta: float, max_iter: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.eta = eta
        self.max_iter = max_iter
        self.completes = self.refines = self.head.diffusion.assignment == "denoising"
        timesteps = self.head.diffusion.timesteps
        self.max_time = timesteps - 1
        self.options = {**self.options, "steps": (1, timesteps), "seed": (0, 2**31 - 1)}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        if cfg.DIFFUSION.ASSIGNMENT not in ASSIGNMENTS:
            nearest = did_you_mean(cfg.DIFFUSION.ASSIGNMENT, ASSIGNMENTS)
            raise UserError(f'DIFFUSION.ASSIGNMENT is "{cfg.DIFFUSION.ASSIGNMENT}"{nearest} (free or denoising)')
        parts, pixel_decoder, mask_decoder = build_parts(
            cfg, num_evidence=2 if cfg.DIFFUSION.ASSIGNMENT == "denoising" else 0
        )
        diffusion = MaskDiffusion.create(
            schedule=cfg.DIFFUSION.SCHEDULE,
            timesteps=cfg.DIFFUSION.TIMESTEPS,
            scale=cfg.DIFFUSION.SIGNAL_SCALE,
            encoding=cfg.DIFFUSION.ENCODING,
            stride=cfg.DIFFUSION.MASK_STRIDE,
            assignment=cfg.DIFFUSION.ASSIGNMENT,
        )
        head = DFormerHead(pixel_decoder=pixel_decoder, mask_decoder=mask_decoder, diffusion=diffusion)
        return {**parts, "head": head, "eta": cfg.DIFFUSION.ETA, "max_iter": cfg.SOLVER.MAX_ITER}

    @property
    def own_share(self) -> float:
        """Return the share of images whose hints are the model's own: from 0 as training begins to 1 as it ends.

        True hints teach what a mask is, soonest; the model's own, what it errs in when it samples (docs/diffusion.md).
        """
        return self.iteration / self.max_iter

    def training_predictions(
        self, features: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> tuple[list[list[Prediction]], list[Target]]:
        masks = [target.masks for target in targets]
        if self.head.diffusion.assignment == "free":
            x_t, t = self.head.corrupt(masks, generators)
            return [self.head(features, x_t, t)], targets
        # Each encoded image is decoded twice: from noise, as in the first sampling step, and from hints.
        memory = self.head.encode(features)
        noise = self.draw_noise(features, generators)
        start = torch.full(noise.shape[:2], self.head.diffusion.timesteps - 1, device=self.device)
        found = self.head.denoise(memory, noise, start)
        x_t, t, owners = self.head.corrupt_hints(found[-1], masks, self.own_share, generators)
        tied = [target._replace(owner=owner) for target, owner in zip(targets, owners, strict=True)]
        return [found, self.head.denoise(memory, x_t, t)], [*targets, *tied]

    def draw_noise(
        self, features: list[Tensor], generators: list[torch.Generator], num_masks: int | None = None
    ) -> Tensor:
        """Draw standard normal noise (B, N, h, w) for images with these features."""
        height, width = (4 * side for side in features[0].shape[-2:])
        return rng.normal(generators, self.head.noise_shape(height, width, num_masks))

    def noise_shape(self, canvas: Sequence[int], request: Request) -> tuple[int, ...]:
        return self.head.noise_shape(canvas[0], canvas[1], request.proposals)

    def predict(
        self, features: list[Tensor], draw_noise: Callable[[], Tensor], request: Request, batch: Batch
    ) -> Iterator[tuple[float | None, Tensor | None, list[Prediction]]]:
        if self.head.diffusion.assignment == "free":
            steps = self.head.sample(features, draw_noise, request.steps, self.eta)
        else:
            times = [t for t, _ in time_pairs(self.head.diffusion.timesteps, request.steps)]
            known_time: int | None = 0
            if batch and "hint_masks" in batch[0]:
                hints = self.hints([item["hint_masks"] for item in batch], features, request.proposals)
                times, known_time = falling_times(batch[0]["hint_time"], request.steps), None
            elif any("known_map" in item for item in batch):
                hints = self.hints([self.known_masks(item) for item in batch], features, request.proposals)
            else:
                hints = self.free_hints(features, request.proposals)
            memory = self.head.encode(features)
            steps = self.head.sample_hints(memory, hints, draw_noise, times, self.eta, known_time=known_time)
        for step in steps:
            yield step.t, step.x_t, step.output

    def known_masks(self, item: dict[str, Any]) -> Tensor:
        """Return the masks (M, h, w) bool of the segments that are given with an image; none without `known_map`."""
        known = item.get("known_map", torch.zeros(1, *item["image"].shape[1:], dtype=torch.int64)[0])
        return split_known(known)[1]

    def hints(self, masks: list[Tensor], features: list[Tensor], num_masks: int | None = None) -> Hints:
        """Return the hints of masks (M, h, w) bool over each of the images with these features."""
        height, width = (4 * side for side in features[0].shape[-2:])
        num_slots, *_ = self.head.noise_shape(height, width, num_masks)
        cells = []
        for given in masks:
            if len(given) > num_slots:
                raise UserError(f"{len(given)} masks are given, but the model has {num_slots}; give fewer")
            padded = F.pad(given.to(self.device), (0, width - given.shape[2], 0, height - given.shape[1]))
            cells.append(downsample(padded, self.head.diffusion.stride))
        return given_hints(cells, num_slots)

    def free_hints(self, features: list[Tensor], num_masks: int | None = None) -> Hints:
        """Return hints of nothing, as `hints` does, for a batch of any size."""
        batch, _, height, width = features[0].shape
        shape = batch, *self.head.noise_shape(4 * height, 4 * width, num_masks)
        masks = torch.zeros(shape, device=self.device)
        return Hints(masks, torch.full(shape[:2], FREE, device=self.device))

    def output(self, item: dict[str, Any], *found: Any) -> Output:
        return KnownOutput(item["known_map"], self, *found) if "known_map" in item else super().output(item, *found)

    @torch.no_grad()
    def refine(self, item: dict[str, Any], time: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
        if not self.refines:
            return super().refine(item, time, steps, seed)
        last = self.head.diffusion.timesteps - 1
        for name, value, low, high in (("time", time, 0, last), ("steps", steps, 1, time + 1)):
            if not low <= value <= high:
                raise UserError(f"{name} must be in {low}..{high}, got {value}")
        images = self.preprocess([item])
        (size,) = images.image_sizes
        view = View(images.tensor.shape[2:], size, (item["height"], item["width"]))
        features, times = self.features(images.tensor), falling_times(time, steps)
        memory, generator = self.head.encode(features), rng.generator(self.device, seed)
        draw_noise = partial(self.draw_noise, features, [generator])
        logits, found = [], []
        for masks in item["coarse_masks"].split(len(self.head.mask_decoder.query_embed)):
            hints = self.hints([masks], features)
            for step in self.head.sample_hints(memory, hints, draw_noise, times, self.eta):  # noqa: B007
                pass
            prediction = step.output[-1].of_queries(torch.arange(len(masks), device=self.device))
            strips = resized_strips(prediction.masks[0].float(), view)
            found.append(torch.cat([rows > 0 for _, rows in strips], dim=1))
            logits.append(prediction.logits[0].float())
        return torch.cat(logits), torch.cat(found)

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


def falling_times(time: int, steps: int) -> list[int]:
    """Return the times of the steps from `time` on, evenly towards 0."""
    return [time * (steps - k) // steps for k in range(steps)]


class KnownOutput(QueryOutput):
    """Hold an output whose panoptic map keeps the segments that are given, `known` (h, w) ids over the image."""

    def __init__(self, known: Tensor, *found: Any) -> None:
        super().__init__(*found)
        self.known = known

    def result(self, view: View) -> dict[str, Any]:
        result = super().result(view)
        if "panoptic_seg" in result:
            found, segments = result["panoptic_seg"]
            ids, _ = split_known(self.known)
            scores, classes = self.last[0][: len(ids)].softmax(-1)[:, :-1].max(-1)
            given = [
                {"id": k, "isthing": bool(self.model.things[c]), "category_id": c, "score": score}
                for k, c, score in zip(ids, classes.tolist(), scores.tolist(), strict=True)
            ]
            known = F.interpolate(self.known[None, None].float(), view.size, mode="nearest-exact")[0, 0].to(found)
            result["panoptic_seg"] = paste_known(found, segments, known, given)
        return result
