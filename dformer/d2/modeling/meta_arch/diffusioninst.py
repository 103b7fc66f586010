"""The meta-architecture "DiffusionInst"."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, box_convert

from dformer.d2.data.datasets import model_classes
from dformer.d2.modeling.backbones import fold_frozen_norms
from dformer.d2.modeling.meta_arch.build import backbone_channels, segmenter_settings
from dformer.d2.modeling.meta_arch.segmenter import Batch, Segmenter
from dformer.d2.modeling.meta_arch.step import Layer, Output, Request
from dformer.diffusion.sampler import SamplingStep
from dformer.diffusion.schedule import add_noise
from dformer.losses.boxes import BoxCriterion, BoxTarget
from dformer.losses.dynamic_k import BoxLossWeights
from dformer.models.diffusioninst import BoxDiffusion, DiffusionInstHead, ImageFeatures
from dformer.models.mask_branch import NORMS, MaskBranch
from dformer.models.roi_decoder import BoxPrediction, RoIDecoder
from dformer.ops.dynamic_masks import dynamic_masks, num_dynamic_parameters
from dformer.postprocess import dense
from dformer.postprocess.boxes import STRIDE, Detections, instances, suppress, top_detections
from dformer.postprocess.queries import boxes_of
from dformer.postprocess.view import View
from dformer.signals.boxes import signal_to_boxes
from dformer.signals.masks import to_signal
from dformer.utils import rng
from dformer.utils.errors import UserError, did_you_mean

FEATURES = ("res2", "res3", "res4", "res5")  # strides 4, 8, 16, 32
MAX_PROPOSALS = 2_000  # at inference


@META_ARCH_REGISTRY.register()
class DiffusionInst(Segmenter):
    """Find instances by denoising boxes, each of which brings its mask head (Gu et al. 2022)."""

    compilable = ("backbone", "head.fpn", "head.mask_branch", "head.roi_decoder")
    tasks = dense_tasks = ("instance",)

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: DiffusionInstHead,
        criterion: BoxCriterion,
        eta: float,
        nms_threshold: float,
        ensemble_last_step: bool,
        top_k: int,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.eta = eta
        self.nms_threshold = nms_threshold
        self.ensemble_last_step = ensemble_last_step
        self.top_k = top_k
        self.request = replace(self.request, proposals=head.diffusion.num_boxes)
        timesteps = head.diffusion.timesteps
        self.max_time = timesteps - 1
        self.options = {"proposals": (1, MAX_PROPOSALS), "steps": (1, timesteps), "seed": (0, 2**31 - 1)}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        names, things = model_classes(cfg)
        if len(things) != len(names):
            raise UserError(f'INPUT.TASK is "{cfg.INPUT.TASK}", and DiffusionInst finds objects: set it to "instance"')
        if cfg.INPUT.TARGET != "boxes":
            raise UserError(f'INPUT.TARGET is "{cfg.INPUT.TARGET}", and DiffusionInst learns from "boxes"')
        backbone = build_backbone(cfg)
        fold_frozen_norms(backbone)
        return {
            **segmenter_settings(cfg),
            "backbone": backbone,
            "head": _build_head(cfg, backbone_channels(backbone.output_shape()), len(names)),
            "criterion": _build_criterion(cfg, len(names)),
            "eta": cfg.DIFFUSION.ETA,
            "nms_threshold": cfg.TEST.NMS_THRESHOLD,
            "ensemble_last_step": cfg.TEST.ENSEMBLE_LAST_STEP,
            "top_k": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def compute_losses(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> dict[str, Tensor]:
        extent = self.extent(batch)
        targets = []
        for item, size in zip(batch, extent, strict=True):
            found = item["instances"]
            parts = found.gt_classes, found.gt_boxes.tensor, found.gt_masks
            labels, boxes, masks = (x.to(self.device, non_blocking=True) for x in parts)
            targets.append(BoxTarget(labels, boxes, masks, size))
        encoded = self.head.encode(self.features(images))
        x_t, t = self.head.corrupt([target.boxes for target in targets], extent, generators)
        stages = self.head.denoise(encoded, x_t, t, extent)
        logits, predicted, kernels = (torch.stack(parts) for parts in zip(*stages, strict=True))  # (L, B, N, .)
        return self.criterion(logits, predicted, kernels, encoded.mask_features, targets, generators)

    def sample(
        self, images: Tensor, batch: Batch, generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float, list[Output]]]:
        encoded = self.head.encode(self.features(images))
        shape = self.noise_shape(images.shape[-2:], request)
        draw_noise = partial(rng.normal, generators, shape)
        extent = self.extent(batch)
        found: list[list[Detections]] = [[] for _ in batch]  # of the steps so far
        for step in self._counted_steps(encoded, draw_noise, extent, request.steps):
            for b, detections in enumerate(found):
                logits, predicted, kernels = (x[b].float() for x in step.output[-1])
                found[b] = [*detections, top_detections(logits, predicted, kernels, count=shape[0])]
            boxes = signal_to_boxes(step.x_t, extent[:, None], self.head.diffusion.scale)
            yield (
                step.t,
                [
                    BoxOutput(self, images.shape[-2:], found[b], encoded.mask_features[b], boxes[b], stages)
                    for b, stages in enumerate(_of_images(step.output, len(batch)))
                ],
            )

    def _counted_steps(
        self, images: ImageFeatures, draw_noise: Callable[[], Tensor], extent: Tensor, steps: int
    ) -> Iterator[SamplingStep[list[BoxPrediction]]]:
        """Yield the sampling steps whose detections count.

        The published code throws the last of several steps' detections away, so that step is not run.
        """
        counted = steps if steps == 1 or self.ensemble_last_step else steps - 1
        return islice(self.head.sample(images, draw_noise, extent, steps, self.eta), counted)

    def noise_shape(self, canvas: Sequence[int], request: Request) -> tuple[int, ...]:
        return request.proposals or self.head.diffusion.num_boxes, 4

    def predictions(self, images: Tensor, draw_noise: Callable[[], Tensor], request: Request) -> dict[str, Tensor]:
        """Return the detections of all steps before suppression, and the mask features.

        `boxes` (B, n, 4) in pixels, `scores` (B, n), `classes` (B, n) int64, mask heads `kernels` (B, n, P), and
        `mask_features` (B, C, H/4, W/4).
        """
        encoded, num_boxes = self.head.encode(self.features(images)), self.noise_shape(images.shape[-2:], request)[0]
        height, width = images.shape[-2:]
        extent = torch.tensor([width, height, width, height]).to(images, non_blocking=True).expand(images.shape[0], 4)
        found = []
        for step in self._counted_steps(encoded, draw_noise, extent, request.steps):
            logits, boxes, kernels = (x.float() for x in step.output[-1])
            found.append(top_detections(logits, boxes, kernels, count=num_boxes))
        detections = Detections(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))
        return {**detections._asdict(), "mask_features": encoded.mask_features.float()}

    def dense_results(
        self, predictions: dict[str, Tensor], canvas: tuple[int, int], task: str, request: Request
    ) -> dict[str, Tensor]:
        return dense.box_instances(predictions, canvas, self.nms_threshold, self.top_k)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps of strides 4, 8, 16, 32; channels last, where convolutions are faster."""
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return [maps[key] for key in FEATURES]

    def extent(self, batch: Batch) -> Tensor:
        """Return width, height, width, height of the unpadded images (B, 4)."""
        sizes = [item["image"].shape[:0:-1] for item in batch]
        return torch.tensor([[*size, *size] for size in sizes]).to(self.pixel_mean, non_blocking=True)

    def noisy_targets(self, batch: Batch, t: float) -> list[Tensor]:
        """Return pictures of each image's boxes noised at time `t`, in their order and without padding to N."""
        alpha_bar, timesteps, scale, *_ = self.head.diffusion
        if not 0 <= t < timesteps:
            raise UserError(f"times are 0 to {timesteps - 1} (DIFFUSION.TIMESTEPS), got {t}")
        alpha_bar_t = alpha_bar(torch.tensor(int(t), device=self.device))
        noisy = []
        for item in batch:
            masks = item["instances"].gt_masks.to(self.device)
            height, width = masks.shape[1:]
            extent = torch.tensor([width, height, width, height], device=self.device)
            x0 = to_signal(box_convert(boxes_of(masks) / extent, "xyxy", "cxcywh"), scale)
            generator = rng.generator(self.device, self.request.seed)
            noise = torch.randn(x0.shape, generator=generator, device=self.device)
            boxes = signal_to_boxes(add_noise(x0, noise, alpha_bar_t), extent, scale)
            noisy.append(box_maps(boxes, (height, width)))
        return noisy


class BoxOutput(Output):
    """Hold what was found in one image after a step, and how.

    Args:
        canvas: its height and width.
        found: detections of the steps so far.
        mask_features: (C, H/4, W/4).
        boxes: what was denoised (N, 4), in pixels.
        stages: the decoder's predictions, for this image alone.
    """

    def __init__(
        self,
        model: DiffusionInst,
        canvas: Sequence[int],
        found: list[Detections],
        mask_features: Tensor,
        boxes: Tensor,
        stages: list[BoxPrediction],
    ) -> None:
        self.model, self.canvas, self.found = model, canvas, found
        self.mask_features, self.boxes, self.stages = mask_features, boxes, stages

    @property
    def noisy(self) -> Tensor:
        return box_maps(self.boxes, self.canvas)

    def result(self, view: View) -> dict[str, Any]:
        detections = suppress(self.found, self.model.nms_threshold, self.model.top_k)
        masks, boxes, scores, classes = instances(detections, self.mask_features, view)
        fields = {"pred_masks": masks, "pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": classes}
        return {"instances": Instances(view.size, **fields)}

    def visible(self, max_rows: int) -> Tensor:
        """Return the boxes of the highest scores, without those that nearly repeat a better one."""
        logits, boxes, kernels = (x.float() for x in self.stages[-1])
        scores, classes = logits.sigmoid().max(1)
        rows = torch.arange(len(boxes), device=boxes.device)[:, None]  # in place of the mask heads
        return suppress([Detections(boxes, scores, classes, rows)], self.model.nms_threshold, max_rows).kernels[:, 0]

    def layers(self, rows: Tensor) -> list[Layer]:
        """Return what each stage did with these boxes: it looked into them; masks are cut to the refined ones."""
        before = [self.boxes, *(stage.boxes for stage in self.stages[:-1])]
        layers = []
        for start, (logits, boxes, kernels) in zip(before, self.stages, strict=True):
            masks = dynamic_masks(kernels[rows].float(), self.mask_features.float())
            outside = box_maps(boxes[rows], self.canvas)[:, ::STRIDE, ::STRIDE] == 0
            # Sigmoid scores have no class for nothing: what the best one leaves is shared by all others.
            best, label = logits[rows].float().sigmoid().max(1, keepdim=True)  # (M, 1)
            shares = ((1 - best) / logits.shape[1]).repeat(1, logits.shape[1] + 1).scatter(1, label, best)
            attended = box_maps(start[rows], self.canvas)[:, ::STRIDE, ::STRIDE] > 0
            layers.append(Layer(attended, masks.masked_fill(outside, -20.0), shares.log()))
        return layers


def box_maps(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Draw each box (M, 4), in pixels, into a map of its own, (M, H, W) in [0, 1]: bright its edge, darker inside."""
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    edge = max(2.0, min(size) / 60)

    def inside(margin: float) -> Tensor:
        left, top, right, bottom = (boxes + boxes.new_tensor([margin, margin, -margin, -margin])).T[:, :, None]
        rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
        return rows[:, :, None] & columns[:, None]

    return inside(0).float() - 0.6 * inside(edge).float()


def _of_images(stages: list[BoxPrediction], count: int) -> list[list[BoxPrediction]]:
    return [[BoxPrediction(*(x[b] for x in stage)) for stage in stages] for b in range(count)]


def _build_head(cfg: CfgNode, channels: tuple[int, int, int, int], num_classes: int) -> DiffusionInstHead:
    decoder, branch = cfg.MODEL.ROI_DECODER, cfg.MODEL.MASK_BRANCH
    if branch.NORM not in NORMS:
        raise UserError(f'MODEL.MASK_BRANCH.NORM is "{branch.NORM}"{did_you_mean(branch.NORM, NORMS)}: BN or GN')
    if branch.NORM == "GN" and branch.DIM % 32:
        raise UserError(f'MODEL.MASK_BRANCH.DIM is {branch.DIM}, expected a multiple of 32 for the NORM "GN"')
    return DiffusionInstHead(
        fpn=FeaturePyramidNetwork(list(channels), decoder.HIDDEN_DIM),
        mask_branch=MaskBranch(
            in_dim=decoder.HIDDEN_DIM,
            dim=branch.DIM,
            channels=branch.CHANNELS,
            num_convs=branch.NUM_CONVS,
            norm=branch.NORM,
        ),
        roi_decoder=RoIDecoder(
            dim=decoder.HIDDEN_DIM,
            num_stages=decoder.NUM_STAGES,
            num_heads=decoder.NUM_HEADS,
            ffn_dim=decoder.FFN_DIM,
            dynamic_dim=decoder.DYNAMIC_DIM,
            num_classes=num_classes,
            num_kernel_parameters=num_dynamic_parameters(branch.CHANNELS),
        ),
        diffusion=BoxDiffusion.create(
            schedule=cfg.DIFFUSION.SCHEDULE,
            timesteps=cfg.DIFFUSION.TIMESTEPS,
            scale=cfg.DIFFUSION.SIGNAL_SCALE,
            num_boxes=decoder.NUM_PROPOSALS,
            renewal=cfg.DIFFUSION.BOX_RENEWAL,
        ),
    )


def _build_criterion(cfg: CfgNode, num_classes: int) -> BoxCriterion:
    criterion = cfg.MODEL.BOX_CRITERION
    frequencies = None
    if criterion.FEDERATED_CLASSES:
        counts = criterion.CLASS_IMAGES or [0] * num_classes  # a checkpoint to be evaluated has its own
        if len(counts) != num_classes:
            raise UserError(f"MODEL.BOX_CRITERION.CLASS_IMAGES has {len(counts)} numbers for {num_classes} classes")
        frequencies = torch.tensor(counts, dtype=torch.float32).sqrt()
    return BoxCriterion(
        weights=BoxLossWeights(
            criterion.CLASS_WEIGHT, criterion.L1_WEIGHT, criterion.GIOU_WEIGHT, criterion.DICE_WEIGHT
        ),
        federated_classes=criterion.FEDERATED_CLASSES,
        frequencies=frequencies,
    )
