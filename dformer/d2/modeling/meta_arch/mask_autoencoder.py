"""The meta-architecture "MaskAutoencoder": LDMSeg's first stage, which encodes and reconstructs the annotation."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dformer.d2.data.datasets import model_classes
from dformer.d2.modeling.meta_arch.build import segmenter_settings
from dformer.d2.modeling.meta_arch.segmenter import Batch, Segmenter
from dformer.d2.modeling.meta_arch.step import Output, Request
from dformer.losses.id_maps import IdTarget, PointSettings, id_map_losses
from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel, kl_divergence
from dformer.postprocess.id_maps import (
    SegmentMap,
    SegmentThresholds,
    panoptic_segments,
    segment_map,
    semantic_scores,
    thing_instances,
)
from dformer.postprocess.view import View
from dformer.signals.bits import draw_ids, int_to_bits, stuff_classes
from dformer.utils import rng
from dformer.utils.errors import UserError


def build_mask_autoencoder(cfg: CfgNode) -> MaskAutoencoderModel:
    """Return the network of MODEL.MASK_AUTOENCODER."""
    node = cfg.MODEL.MASK_AUTOENCODER
    model = MaskAutoencoderModel(
        num_bits=node.NUM_BITS,
        channels=node.CHANNELS,
        latent_channels=node.LATENT_CHANNELS,
        hidden_channels=node.HIDDEN_CHANNELS,
        upscale_channels=node.UPSCALE_CHANNELS,
        upscalers=node.UPSCALERS,
        groups=node.GROUPS,
    )
    if cfg.MODEL.SIZE_DIVISIBILITY % model.stride:
        raise UserError(
            f"MODEL.SIZE_DIVISIBILITY is {cfg.MODEL.SIZE_DIVISIBILITY}, expected a multiple of {model.stride}, "
            "the stride of MODEL.MASK_AUTOENCODER"
        )
    return model


def segment_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the keywords that MaskAutoencoder and LDMSeg share, beside those of `Segmenter`."""
    criterion, (names, things) = cfg.MODEL.CRITERION, model_classes(cfg)
    points = PointSettings(criterion.NUM_POINTS, criterion.OVERSAMPLE_RATIO, criterion.IMPORTANCE_SAMPLE_RATIO)
    return {
        **segmenter_settings(cfg),
        "points": points,
        "things": [index in things for index in range(len(names))],
        "min_area": cfg.TEST.MIN_AREA,
    }


class SegmentMapper(Segmenter):
    """Hold what MaskAutoencoder and LDMSeg share: maps of ids in training, and segments with classes as results.

    INPUT.TARGET is "panoptic_map".
    """

    def __init__(self, *, points: PointSettings, things: list[bool], min_area: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.points = points
        self.min_area = min_area
        self.things = torch.tensor(things)  # on the CPU, where segments are listed
        self.stuff_classes = stuff_classes(things)

    def padded_map(self, item: dict[str, Any], canvas: tuple[int, int]) -> Tensor:
        """Return the panoptic map of an image, (H, W) int64, with void beside it up to the canvas."""
        panoptic_map = item["panoptic_map"] if "panoptic_map" in item else map_of(item["instances"].gt_masks)
        panoptic_map = panoptic_map.to(self.device, non_blocking=True)
        return F.pad(panoptic_map, (0, canvas[1] - panoptic_map.shape[1], 0, canvas[0] - panoptic_map.shape[0]))

    def thresholds(self, request: Request) -> SegmentThresholds:
        """Return the thresholds of a request."""
        probability = torch.tensor(request.object_threshold, dtype=torch.float64)
        return SegmentThresholds(
            request.object_threshold, request.overlap_threshold, self.min_area, probability.logit().item()
        )


def map_of(masks: Tensor) -> Tensor:
    """Return the panoptic map (h, w) of masks (G, h, w), as pictures and figures have them; later ones over others."""
    numbers = torch.arange(len(masks) + 1, device=masks.device)[:, None, None]
    return (numbers * F.pad(masks, (0, 0, 0, 0, 1, 0))).amax(0)


def id_target(panoptic_map: Tensor, ids: Tensor) -> IdTarget:
    """Return the target of an image's panoptic map (H, W), whose object k has the id `ids[k]` or, for 0, none."""
    return IdTarget(F.pad(ids, (1, 0))[panoptic_map], ids)


def id_signal(targets: list[IdTarget], num_bits: int) -> Tensor:
    """Return the bits (B, n, H, W) in [-1, 1] of maps of ids; void is 0."""
    return 2 * int_to_bits(torch.stack([target.ids for target in targets]), num_bits, void=0) - 1


class SegmentOutput(Output):
    """Compute results from `logits` of an image's ids."""

    def __init__(self, model: SegmentMapper, request: Request) -> None:
        self.model, self.request = model, request

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Return logits of the ids (N, h, w)."""

    @abstractmethod
    def class_scores(self, found: SegmentMap) -> Tensor:
        """Return scores (G, K) in [0, 1] of the segments' classes, on the CPU."""

    def result(self, view: View) -> dict[str, Any]:
        found = segment_map(self.logits, view, self.model.thresholds(self.request))
        classes, things, tasks = self.class_scores(found), self.model.things, self.request.tasks
        result: dict[str, Any] = {}
        if "semantic" in tasks:
            result["sem_seg"] = semantic_scores(found, classes)
        if "panoptic" in tasks:
            result["panoptic_seg"] = panoptic_segments(found, classes, things)
        if "instance" in tasks:
            masks, boxes, scores, labels = thing_instances(found, classes, things)
            fields = {"pred_masks": masks, "pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": labels}
            result["instances"] = Instances(view.size, **fields)
        return result


@META_ARCH_REGISTRY.register()
class MaskAutoencoder(SegmentMapper):
    """Encode maps of ids to latents and reconstruct them (Van Gansbeke and De Brabandere 2024, Sec. 3.2).

    Inference takes `panoptic_map` and `instances.gt_classes` beside the image (TEST.WITH_TARGETS), and its results are
    the annotation as far as the latents keep it.
    """

    compilable = ("mask_autoencoder.encoder", "mask_autoencoder.decoder")

    @configurable
    def __init__(self, *, mask_autoencoder: MaskAutoencoderModel, kl_weight: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.mask_autoencoder = mask_autoencoder
        self.kl_weight = kl_weight
        self.options = {"seed": (0, 2**31 - 1)}  # of the ids

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        kl_weight = cfg.MODEL.MASK_AUTOENCODER.KL_WEIGHT
        return {**segment_settings(cfg), "mask_autoencoder": build_mask_autoencoder(cfg), "kl_weight": kl_weight}

    def compute_losses(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> dict[str, Tensor]:
        targets = self.targets(images, batch, generators)
        mean, logvar = self.mask_autoencoder.encode(id_signal(targets, self.mask_autoencoder.num_bits))
        latents = mean + (logvar / 2).exp() * rng.normal(generators, mean.shape[1:])  # (B, Z, h, w)
        losses = id_map_losses(self.mask_autoencoder.decode(latents), targets, self.points, generators)
        if self.kl_weight > 0:
            losses["loss_kl"] = self.kl_weight * kl_divergence(mean.float(), logvar.float()).mean()
        return losses

    def sample(
        self, images: Tensor, batch: Batch, generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float | None, list[Output]]]:
        if any("instances" not in item for item in batch):
            raise UserError(
                "MaskAutoencoder reconstructs annotations and cannot segment images; evaluate it with "
                "TEST.WITH_TARGETS True, and train LDMSeg with it (MODEL.MASK_AUTOENCODER.WEIGHTS)"
            )
        targets = self.targets(images, batch, generators)
        mean, _ = self.mask_autoencoder.encode(id_signal(targets, self.mask_autoencoder.num_bits))
        logits = self.mask_autoencoder.decode(mean).float()  # (B, N, h', w')
        yield (
            None,
            [
                Reconstruction(self, request, each, target.present, item["instances"].gt_classes)
                for each, target, item in zip(logits, targets, batch, strict=True)
            ],
        )

    def targets(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> list[IdTarget]:
        """Return each image's map of ids, drawn at random."""
        canvas, targets = (images.shape[2], images.shape[3]), []
        for item, generator in zip(batch, generators, strict=True):
            panoptic_map = self.padded_map(item, canvas)
            count = len(item["instances"])
            ids = draw_ids(panoptic_map, count, self.mask_autoencoder.num_ids, "random", generator)
            targets.append(id_target(panoptic_map, ids))
        return targets


class Reconstruction(SegmentOutput):
    """Hold a reconstruction; a segment's class is that of the object whose id it has."""

    def __init__(self, model: SegmentMapper, request: Request, logits: Tensor, present: Tensor, labels: Tensor) -> None:
        super().__init__(model, request)
        self.decoded = logits
        self.present, self.labels = present, labels  # (G',) ids and classes of the objects

    @property
    def logits(self) -> Tensor:
        return self.decoded

    def class_scores(self, found: SegmentMap) -> Tensor:
        table = torch.zeros(len(self.decoded), len(self.model.things))
        table[self.present.cpu(), self.labels] = 1.0
        return table[found.ids]
