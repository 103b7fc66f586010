"""DiffusionInst (Gu et al. 2022): instance masks from noisy boxes.

Shapes: B images of H x W (padded), N boxes, C channels, M channels of the mask features.
Units: the diffusion runs on the signal in [-b, b]; the decoder takes boxes in pixels (`dformer.signals.boxes`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, box_convert

from dformer.diffusion.sampler import SamplingStep, Time, ddim_step, sample, time_pairs
from dformer.diffusion.schedule import Schedule, add_noise, alpha_bar_table, table_schedule
from dformer.layers.roi_align import PyramidCells, pyramid_cells
from dformer.models.mask_branch import MaskBranch
from dformer.models.roi_decoder import BoxPrediction, RoIDecoder
from dformer.signals.boxes import boxes_to_signal, initial_boxes, signal_to_boxes
from dformer.signals.masks import to_signal


class BoxDiffusion(NamedTuple):
    """Hold the settings of the diffusion: the schedule over 0..T-1 and T, the signal scale b, the number N of boxes in
    training, and the score above which a box lives on through a sampling step."""

    alpha_bar: Schedule
    timesteps: int
    scale: float
    num_boxes: int
    renewal: float

    @classmethod
    def create(cls, schedule: str, timesteps: int, scale: float, num_boxes: int, renewal: float) -> "BoxDiffusion":
        """Return the settings with the schedule of that name."""
        return cls(table_schedule(alpha_bar_table(schedule, timesteps)), timesteps, scale, num_boxes, renewal)


class ImageFeatures(NamedTuple):
    """Hold what all sampling steps share of the images: their pyramid, and the mask features (B, M, H/4, W/4)."""

    cells: PyramidCells
    mask_features: Tensor


class DiffusionInstHead(nn.Module):
    """Predict classes, boxes and mask heads from backbone features and noisy boxes."""

    def __init__(
        self,
        *,
        fpn: FeaturePyramidNetwork,
        mask_branch: MaskBranch,
        roi_decoder: RoIDecoder,
        diffusion: BoxDiffusion,
    ) -> None:
        super().__init__()
        self.fpn = fpn
        self.mask_branch = mask_branch
        self.roi_decoder = roi_decoder
        self.diffusion = diffusion

    def encode(self, features: list[Tensor]) -> ImageFeatures:
        """Return what all sampling steps share, from maps of strides 4, 8, 16, 32."""
        pyramid = list(self.fpn({str(level): x for level, x in enumerate(features)}).values())  # (B, C, h, w) each
        return ImageFeatures(pyramid_cells(pyramid), self.mask_branch(pyramid[:3]))

    def denoise(self, images: ImageFeatures, x_t: Tensor, t: Tensor, extent: Tensor) -> list[BoxPrediction]:
        """Return the predictions after each stage.

        Args:
            x_t: noisy signal (B, N, 4).
            t: its times (B,), 0..T-1.
            extent: width, height, width, height of the unpadded images (B, 4), float32.
        """
        boxes = signal_to_boxes(x_t, extent[:, None], self.diffusion.scale)  # (B, N, 4) in pixels
        return self.roi_decoder(images.cells, boxes, t)

    def corrupt(
        self, gt_boxes: list[Tensor], extent: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Return the noisy signal (B, N, 4) for training, not clamped, and its random times t (B,), one an image.

        Args:
            gt_boxes: B times (G, 4) in pixels. With G > N a random subset of N is noised.
            extent: as of `denoise`.
            generators: one an image.
        """
        alpha_bar, timesteps, scale, num_boxes, _ = self.diffusion
        noisy, times = [], []
        for boxes, size, generator in zip(gt_boxes, extent, generators, strict=True):
            t = torch.randint(timesteps, (), generator=generator, device=boxes.device)
            shares = initial_boxes(box_convert(boxes / size, "xyxy", "cxcywh"), num_boxes, generator)
            noise = torch.randn(shares.shape, generator=generator, device=boxes.device)
            noisy.append(add_noise(to_signal(shares, scale), noise, alpha_bar(t)))
            times.append(t)
        return torch.stack(noisy), torch.stack(times)

    def sample(
        self, images: ImageFeatures, draw_noise: Callable[[], Tensor], extent: Tensor, steps: int, eta: float
    ) -> Iterator[SamplingStep[list[BoxPrediction]]]:
        """Yield the sampling steps from noise alone (DiffusionDet, Alg. 2); the last stage's prediction is the result.

        Args:
            draw_noise: standard normal noise (B, N, 4), new at each call; N need not be that of training.
            extent: as of `denoise`.
            steps: 1..T.
            eta: 0 (deterministic but for renewed boxes) to 1 (DDPM).
        """

        def denoise(x_t: Tensor, t: Tensor, _: Tensor | None) -> tuple[Tensor, list[BoxPrediction]]:
            predictions = self.denoise(images, x_t, t, extent)
            return boxes_to_signal(predictions[-1].boxes, extent[:, None], scale), predictions

        alpha_bar, timesteps, scale, _, renewal = self.diffusion
        renew = partial(renew_boxes, draw_noise=draw_noise, threshold=renewal)
        return sample(denoise, draw_noise, time_pairs(timesteps, steps), alpha_bar, partial(ddim_step, eta=eta), renew)


def renew_boxes(
    x_t: Tensor, step: SamplingStep[list[BoxPrediction]], t: Time, draw_noise: Callable[[], Tensor], threshold: float
) -> Tensor:
    """Put fresh noise in the place of boxes whose best score is at most `threshold` (DiffusionDet, Sec. 3.4).

    In place and for each image by itself. The published code keeps image 0's survivors first and appends fresh boxes,
    which is the same up to the order, that nothing depends on. As there, the fresh noise is that of the first time.
    """
    keep = step.output[-1].logits.float().sigmoid().amax(2, keepdim=True) > threshold  # (B, N, 1)
    return torch.where(keep, x_t, draw_noise())
