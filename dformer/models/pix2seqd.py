"""Pix2Seq-D (Chen et al. 2023): segmentation as denoising of the bits of a panoptic map.

Shapes: B images of H x W (padded), maps of h x w = H/stride x W/stride, n = class and id bits, F past maps, p the side
of the patches of pixels that are a cell of the decoder's finest map. Labels (B, 2, h, w) int64 are class and id, 0 for
none.
Units: the diffusion runs on the signal in [-b, b].
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.diffusion.continuous import asymmetric_time_pairs
from dformer.diffusion.prediction import x0_from_eps
from dformer.diffusion.sampler import SamplingStep, ddim_step, last_step, sample
from dformer.diffusion.schedule import Schedule, add_noise
from dformer.layers.attention import Memory
from dformer.losses.label_maps import instance_weights, l2_loss, sigmoid_loss, softmax_loss
from dformer.models.unet.image_encoder import FeaturePyramidMerge, TokenEncoder
from dformer.models.unet.transunet import TransUNet
from dformer.signals.bits import bits_to_int, expected_bits, int_to_bits, value_probability
from dformer.signals.masks import to_signal, to_unit

STRIDES = (4, 8, 16)
PREDICTIONS = ("softmax", "sigmoid", "x0", "eps")


class BitDiffusion(NamedTuple):
    """Hold the settings of the diffusion: the schedule over 0..1, the signal scale b, how many bits a class and an id
    have, what the decoder predicts (of `PREDICTIONS`), and how many image pixels wide a pixel of the map is."""

    alpha_bar: Schedule
    scale: float
    bits: tuple[int, int]
    prediction: str
    stride: int

    @property
    def out_channels(self) -> int:
        """Return the channels of a prediction: two softmaxes over all values, or a number a bit."""
        return sum(2**bits for bits in self.bits) if self.prediction == "softmax" else sum(self.bits)


class ImageMemory(NamedTuple):
    """Hold what all steps share: a map (B, C, h/p, w/p), and keys and values of each layer of the decoder."""

    map: Tensor
    layers: list[Memory]

    def repeat(self, copies: int) -> "ImageMemory":
        """Return each image `copies` times in a row."""
        layers = [Memory(*(x.repeat_interleave(copies, dim=0) for x in memory)) for memory in self.layers]
        return ImageMemory(self.map.repeat_interleave(copies, dim=0), layers)


class Pix2SeqDHead(nn.Module):
    """Predict class and id of each pixel from backbone features and noisy bits.

    Args:
        num_labels: classes and ids, each with 0 for none; higher integers are read as the highest.
        past_maps: F, earlier frames' maps that the decoder sees; 0 for images.
        patch_size: p, 1 as published.
        weight_power: of `instance_weights` in the loss.
    """

    def __init__(
        self,
        *,
        encoder: TokenEncoder,
        fuse: FeaturePyramidMerge,
        decoder: TransUNet,
        diffusion: BitDiffusion,
        num_labels: tuple[int, int],
        past_maps: int = 0,
        patch_size: int = 1,
        weight_power: float = 0.2,
    ) -> None:
        super().__init__()
        self.encoder, self.fuse, self.decoder = encoder, fuse, decoder
        self.diffusion, self.num_labels = diffusion, num_labels
        self.past_maps, self.patch_size, self.weight_power = past_maps, patch_size, weight_power

    def encode(self, features: list[Tensor]) -> ImageMemory:
        """Return what all sampling steps share, from maps of strides 4, 8, 16."""
        tokens = self.encoder(features[-1])  # (B, D, H/16, W/16)
        return ImageMemory(self.fuse([*features[:-1], tokens]), self.decoder.encode_memory(tokens.flatten(2).mT))

    def denoise(self, memory: ImageMemory, x_t: Tensor, t: Tensor, past: Tensor | None = None) -> Tensor:
        """Return the prediction (B, out_channels, h, w) for a noisy signal (B, n, h, w) at times t (B,).

        Args:
            past: labels of the past maps (B, F, 2, h, w), the earliest first; a missing one is 0 everywhere.
        """
        patches = [F.pixel_unshuffle(x_t, self.patch_size), memory.map]  # (B, n p^2, h/p, w/p), (B, C, h/p, w/p)
        if self.past_maps:
            past = x_t.new_zeros(len(x_t), self.past_maps, 2, *x_t.shape[2:]).long() if past is None else past
            patches.append(F.pixel_unshuffle(self.to_signal(past).flatten(1, 2), self.patch_size))
        # As published, the decoder is told the noise level alpha_bar(t); the paper says t.
        output = self.decoder(torch.cat(patches, dim=1), self.diffusion.alpha_bar(t), memory.layers)
        return F.pixel_shuffle(output, self.patch_size).float()

    def to_signal(self, labels: Tensor) -> Tensor:
        """Return the signal (..., n, h, w) of labels (..., 2, h, w): the bits of the class before those of the id."""
        pairs = zip(labels.unbind(-3), self.diffusion.bits, strict=True)
        return to_signal(torch.cat([int_to_bits(*pair) for pair in pairs], dim=-3), self.diffusion.scale)

    def to_labels(self, x0: Tensor) -> Tensor:
        """Return the labels (B, 2, h, w) of a signal (B, n, h, w)."""
        parts = zip((x0 > 0).split(self.diffusion.bits, dim=1), self.num_labels, strict=True)
        return torch.stack([bits_to_int(bits).clamp(max=count - 1) for bits, count in parts], dim=1)

    def predicted_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the signal (B, n, h, w) in [-b, b] that a prediction means."""
        alpha_bar, scale, _, prediction, _ = self.diffusion
        match prediction:
            case "softmax":
                bits = [expected_bits(x.softmax(1)) for x in self._values(output)]
                return to_signal(torch.cat(bits, dim=1), scale)
            case "sigmoid":
                return to_signal(output.sigmoid(), scale)
            case "x0":
                return output.clamp(-scale, scale)
            case _:
                return x0_from_eps(x_t, output, alpha_bar(t)).clamp(-scale, scale)

    def probabilities(self, output: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of each class and of each id (B, values, h, w), from a prediction and its signal."""
        if self.diffusion.prediction == "softmax":
            classes, ids = (x.softmax(1) for x in self._values(output))
        else:
            bits = to_unit(x0, self.diffusion.scale).split(self.diffusion.bits, dim=1)
            classes, ids = (value_probability(x) for x in bits)
        return classes, ids

    def _values(self, output: Tensor) -> tuple[Tensor, ...]:
        return output.split([2**bits for bits in self.diffusion.bits], dim=1)

    def loss(self, memory: ImageMemory, labels: Tensor, t: Tensor, noise: Tensor, past: Tensor | None = None) -> Tensor:
        """Return the loss for labels (B, 2, h, w) at times t (B,) with standard normal noise (B, n, h, w).

        Args:
            past: as of `denoise`.
        """
        x0 = self.to_signal(labels)
        output = self.denoise(memory, add_noise(x0, noise, self.diffusion.alpha_bar(t)), t, past)
        weights = instance_weights(labels[:, 1], self.num_labels[1], self.weight_power)
        match self.diffusion.prediction:
            case "softmax":
                return softmax_loss(self._values(output), labels, weights)
            case "sigmoid":
                return sigmoid_loss(output, (x0 > 0).float(), weights)
            case "x0":
                return l2_loss(output, x0, weights)
            case _:
                return l2_loss(output, noise)

    def sample(
        self,
        memory: ImageMemory,
        draw_noise: Callable[[], Tensor],
        steps: int,
        time_difference: float,
        eta: float = 0.0,
        past: Tensor | None = None,
    ) -> Iterator[SamplingStep[Tensor]]:
        """Yield the sampling steps from noise alone; the last one's x_0 is the result.

        Args:
            draw_noise: standard normal noise (B, n, h, w), new at each call.
            time_difference: of `asymmetric_time_pairs`.
            eta: 0 (deterministic after the first noise) to 1 (DDPM).
            past: as of `denoise`.
        """

        def denoise(x_t: Tensor, t: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
            output = self.denoise(memory, x_t, t, past)
            return self.predicted_x0(output, x_t, t), output

        times = asymmetric_time_pairs(steps, time_difference)
        return sample(denoise, draw_noise, times, self.diffusion.alpha_bar, partial(ddim_step, eta=eta))

    def sample_video(
        self,
        memories: Iterable[ImageMemory],
        draw_noise: Callable[[], Tensor],
        steps: tuple[int, int],
        time_difference: float,
        eta: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield the labels (B, 2, h, w) of each frame, which are past maps to those that follow (Sec. 3.5).

        Args:
            memories: of the frames; one is read at a time.
            steps: of the first frame, and of each other.
        """
        past: Tensor | None = None
        for index, memory in enumerate(memories):
            last = last_step(self.sample(memory, draw_noise, steps[index > 0], time_difference, eta, past))
            labels = self.to_labels(last.x0)
            yield labels
            before = torch.zeros_like(labels)[:, None].repeat_interleave(self.past_maps, 1) if past is None else past
            past = torch.cat([before, labels[:, None]], dim=1)[:, 1:]
