"""The meta-architecture "Pix2SeqD"."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from dformer.d2.data.datasets import model_classes
from dformer.d2.modeling.backbones import fold_frozen_norms
from dformer.d2.modeling.meta_arch.build import segmenter_settings
from dformer.d2.modeling.meta_arch.mask_autoencoder import map_of
from dformer.d2.modeling.meta_arch.segmenter import Batch, Segmenter
from dformer.d2.modeling.meta_arch.step import Output, Request
from dformer.diffusion.continuous import continuous_schedule
from dformer.diffusion.sampler import last_step
from dformer.diffusion.schedule import add_noise
from dformer.models.pix2seqd import PREDICTIONS, STRIDES, BitDiffusion, ImageMemory, Pix2SeqDHead
from dformer.models.unet.image_encoder import FeaturePyramidMerge, TokenEncoder
from dformer.models.unet.transunet import TransUNet
from dformer.postprocess import dense
from dformer.postprocess.label_maps import find_segments, majority_vote
from dformer.postprocess.queries import boxes_of
from dformer.postprocess.view import View, resized_strips
from dformer.signals.bits import ID_ORDERS, draw_ids, label_map, stuff_classes
from dformer.signals.masks import to_unit
from dformer.utils import rng
from dformer.utils.errors import UserError, did_you_mean

FEATURES = ("res2", "res3", "res4")
UPSAMPLINGS = ("nearest", "bilinear")


def build_head(cfg: CfgNode, channels: tuple[int, ...], num_classes: int) -> Pix2SeqDHead:
    """Build the head for a backbone's `channels` at strides 4, 8, 16."""
    node, bits = cfg.MODEL.PIX2SEQD, (cfg.MODEL.PIX2SEQD.CLASS_BITS, cfg.MODEL.PIX2SEQD.ID_BITS)
    allowed = {"PREDICTION": PREDICTIONS, "ID_ORDER": ID_ORDERS, "UPSAMPLING": UPSAMPLINGS}
    for key, values in allowed.items():
        if node[key] not in values:
            raise UserError(f'MODEL.PIX2SEQD.{key} is "{node[key]}"{did_you_mean(node[key], values)}, of {values}')
    for key, num_labels, size in (("CLASS_BITS", num_classes + 1, bits[0]), ("ID_BITS", node.NUM_IDS, bits[1])):
        if num_labels > 2**size:
            raise UserError(f"MODEL.PIX2SEQD.{key} is {size}, too few for {num_labels} values, 0 for none among them")
    try:
        schedule = continuous_schedule(cfg.DIFFUSION.SCHEDULE)
    except ValueError as error:
        raise UserError(f"DIFFUSION.SCHEDULE: {error}") from error
    diffusion = BitDiffusion(schedule, cfg.DIFFUSION.SIGNAL_SCALE, bits, node.PREDICTION, cfg.DIFFUSION.MASK_STRIDE)
    cell = diffusion.stride * node.PATCH_SIZE
    if cell > STRIDES[-1] or cfg.MODEL.SIZE_DIVISIBILITY % (cell * 2 ** (len(node.UNET_MULTIPLIERS) - 1)):
        raise UserError(
            f"MODEL.SIZE_DIVISIBILITY is {cfg.MODEL.SIZE_DIVISIBILITY}, but images must divide by DIFFUSION.MASK_STRIDE"
            f" * PATCH_SIZE, at most 16 and now {cell}, and by 2 for each of UNET_MULTIPLIERS but one"
        )
    encoder = TokenEncoder(
        channels[-1],
        node.ENCODER_DIM,
        node.ENCODER_LAYERS,
        node.ENCODER_HEADS,
        node.ENCODER_FFN_DIM,
        dropout=node.ENCODER_DROPOUT,
        drop_path=node.ENCODER_DROP_PATH,
    )
    fuse = FeaturePyramidMerge((*channels[:-1], node.ENCODER_DIM), STRIDES, cell, node.FUSE_DIM)
    decoder = TransUNet(
        in_channels=sum(bits) * (1 + node.PAST_MAPS) * node.PATCH_SIZE**2 + fuse.out_channels,
        out_channels=diffusion.out_channels * node.PATCH_SIZE**2,
        dim=node.UNET_DIM,
        multipliers=node.UNET_MULTIPLIERS,
        num_blocks=node.UNET_BLOCKS,
        transformer_dim=node.ENCODER_DIM,
        num_layers=node.DECODER_LAYERS,
        num_heads=node.DECODER_HEADS,
        time_scaling=node.TIME_SCALING,
    )
    return Pix2SeqDHead(
        encoder=encoder,
        fuse=fuse,
        decoder=decoder,
        diffusion=diffusion,
        num_labels=(num_classes + 1, node.NUM_IDS),
        past_maps=node.PAST_MAPS,
        patch_size=node.PATCH_SIZE,
        weight_power=node.MASK_WEIGHT_POWER,
    )


@META_ARCH_REGISTRY.register()
class Pix2SeqD(Segmenter):
    """Segment by denoising the bits of the panoptic map (Chen et al. 2023)."""

    compilable = ("backbone", "head.encoder", "head.fuse", "head.decoder")
    dense_tasks = ("panoptic",)
    max_time = 1.0
    options = {"steps": (1, 1000), "seed": (0, 2**31 - 1)}
    things: Tensor
    stuff_classes: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: Pix2SeqDHead,
        things: list[bool],
        id_order: str,
        noisy_copies: int,
        past_dropout: float,
        time_difference: float,
        eta: float,
        upsampling: str,
        min_area: int,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.backbone, self.head = backbone, head
        self.id_order, self.noisy_copies, self.past_dropout = id_order, noisy_copies, past_dropout
        self.time_difference, self.eta = time_difference, eta
        self.upsampling, self.min_area = upsampling, min_area
        self.register_buffer("things", torch.tensor(things), persistent=False)
        self.register_buffer("stuff_classes", stuff_classes(things), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        if cfg.INPUT.TARGET != "panoptic_map":
            raise UserError(f'INPUT.TARGET is "{cfg.INPUT.TARGET}", but Pix2SeqD learns from "panoptic_map"')
        names, things = model_classes(cfg)
        backbone = build_backbone(cfg)
        fold_frozen_norms(backbone)
        shapes = backbone.output_shape()
        strides = tuple(shapes[key].stride for key in FEATURES if key in shapes)
        if strides != STRIDES:
            raise UserError(f"MODEL.BACKBONE.NAME: the backbone's strides are {strides}, but {STRIDES} are needed")
        return {
            **segmenter_settings(cfg),
            "backbone": backbone,
            "head": build_head(cfg, tuple(shapes[key].channels for key in FEATURES), len(names)),
            "things": [index in things for index in range(len(names))],
            "id_order": cfg.MODEL.PIX2SEQD.ID_ORDER,
            "noisy_copies": cfg.MODEL.PIX2SEQD.NOISY_COPIES,
            "past_dropout": cfg.MODEL.PIX2SEQD.PAST_DROPOUT,
            "time_difference": cfg.DIFFUSION.TIME_DIFFERENCE,
            "eta": cfg.DIFFUSION.ETA,
            "upsampling": cfg.MODEL.PIX2SEQD.UPSAMPLING,
            "min_area": cfg.TEST.MIN_AREA,
        }

    def encode(self, images: Tensor) -> ImageMemory:
        """Return what all steps share, of images (B, 3, H, W)."""
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return self.head.encode([maps[key] for key in FEATURES])

    def compute_losses(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> dict[str, Tensor]:
        copies = self.noisy_copies
        # The copies of an image draw one after the other: a time, noise, and ids.
        drawn = [
            self.draw(item, g, images.shape[-2:])
            for item, g in zip(batch, generators, strict=True)
            for _ in range(copies)
        ]
        t, noise, labels = (torch.stack([each[i] for each in drawn]) for i in range(3))
        past = torch.stack([each[3] for each in drawn]) if self.head.past_maps else None
        return {"loss_bits": self.head.loss(self.encode(images).repeat(copies), labels, t, noise, past)}

    def draw(self, item: dict[str, Any], generator: torch.Generator, canvas: torch.Size) -> tuple[Tensor, ...]:
        """Draw for an image a time, noise (n, h, w), and labels (2, h, w); return these and the past labels."""
        t = torch.rand((), generator=generator, device=self.device)
        noise = rng.normal([generator], self.noise_shape(canvas, self.request))[0]
        objects = self.to_grid(self.panoptic_map(item).to(self.device, non_blocking=True), canvas)
        classes = item["instances"].gt_classes.to(self.device, non_blocking=True)
        stuff = self.stuff_classes[classes]
        ids = draw_ids(objects, len(classes), self.head.num_labels[1], self.id_order, generator, stuff)
        past = objects.new_zeros(self.head.past_maps, *objects.shape)
        if self.head.past_maps and "past_maps" in item:
            past = self.to_grid(item["past_maps"].to(self.device, non_blocking=True), canvas)
            kept = torch.rand(len(past), generator=generator, device=self.device) >= self.past_dropout
            past = past * kept[:, None, None]
            if self.id_order == "grid":  # where there is a past, that says the ids, whichever they are
                any_ids = draw_ids(objects, len(classes), self.head.num_labels[1], "random", generator)
                ids = torch.where(past.any(), any_ids, ids)
        return t, noise, label_map(objects, classes, ids), label_map(past, classes, ids).transpose(0, 1)

    def sample(
        self, images: Tensor, batch: Batch, generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float | None, list[Output]]]:
        memory, past = self.encode(images), self.past_labels(batch)
        draw_noise = partial(rng.normal, generators, self.noise_shape(images.shape[-2:], request))
        for step in self.head.sample(memory, draw_noise, request.steps, self.time_difference, self.eta, past):
            parts = zip(step.x_t, step.x0, step.output, strict=True)
            yield step.t, [LabelMapOutput(self, request, *part) for part in parts]

    def noise_shape(self, canvas: Sequence[int], request: Request) -> tuple[int, ...]:
        stride = self.head.diffusion.stride
        return sum(self.head.diffusion.bits), canvas[0] // stride, canvas[1] // stride

    def predictions(self, images: Tensor, draw_noise: Callable[[], Tensor], request: Request) -> dict[str, Tensor]:
        """Return `class_scores` (B, K + 1, h, w), `id_scores` (B, ids, h, w), and `labels` (B, 2, h, w) int64."""
        memory = self.encode(images)
        last = last_step(self.head.sample(memory, draw_noise, request.steps, self.time_difference, self.eta))
        scores = self.head.probabilities(last.output, last.x0)
        classes, ids = (x[:, :count] for x, count in zip(scores, self.head.num_labels, strict=True))
        return {"class_scores": classes, "id_scores": ids, "labels": self.head.to_labels(last.x0)}

    def dense_results(
        self, predictions: dict[str, Tensor], canvas: tuple[int, int], task: str, request: Request
    ) -> dict[str, Tensor]:
        scores = [predictions["class_scores"], predictions["id_scores"]]
        if self.upsampling == "nearest":
            labels = predictions["labels"]
            confidence = scores[0].gather(1, labels[:, :1])
            maps = F.interpolate(torch.cat([labels.float(), confidence], dim=1), canvas, mode="nearest-exact")
            classes, ids, confidence = maps.unbind(1)
        else:
            best = [F.interpolate(x, canvas, mode="bilinear").max(1) for x in scores]
            (confidence, classes), (_, ids) = best
        limits = self.head.num_labels[1], self.min_area, request.object_threshold
        return dense.label_panoptic(classes.long(), ids.long(), confidence, self.things, *limits)

    @staticmethod
    def panoptic_map(item: dict[str, Any]) -> Tensor:
        """Return the panoptic map (H, W) of an item, which for pictures and figures has masks only."""
        return item["panoptic_map"] if "panoptic_map" in item else map_of(item["instances"].gt_masks)

    def past_labels(self, batch: Batch) -> Tensor | None:
        """Return the `past_labels` (F, 2, h, w) of the items, at the maps' size, as (B, F, 2, h, w), or None."""
        if not self.head.past_maps or "past_labels" not in batch[0]:
            return None
        return torch.stack([item["past_labels"].to(self.device, non_blocking=True) for item in batch])

    def to_grid(self, labels: Tensor, canvas: torch.Size) -> Tensor:
        """Return labels (..., H, W), padded to the canvas, at the maps' size: those of the pixels in the middle."""
        labels = F.pad(labels, (0, canvas[1] - labels.shape[-1], 0, canvas[0] - labels.shape[-2]))
        stride = self.head.diffusion.stride
        return labels[..., stride // 2 :: stride, stride // 2 :: stride]

    def noisy_targets(self, batch: Batch, t: float) -> list[Tensor]:
        """Return for each object how much the noisy bits at time `t` are its own: (G, h, w), 1 where all are."""
        if not 0 <= t <= 1:
            raise UserError(f"times are 0 to 1, got {t}")
        noisy, alpha_bar = [], self.head.diffusion.alpha_bar(torch.tensor(t, device=self.device))
        for item in batch:
            panoptic_map, generator = self.panoptic_map(item), rng.generator(self.device, self.request.seed)
            _, noise, labels, _ = self.draw(item, generator, panoptic_map.shape)
            x0 = self.head.to_signal(labels)  # (n, h, w)
            x_t = add_noise(x0, noise, alpha_bar)
            objects = self.to_grid(panoptic_map.to(self.device), panoptic_map.shape)
            codes = [x0[:, objects == k + 1].mean(1).sign().nan_to_num() for k in range(len(item["instances"]))]
            agreement = [to_unit(x_t * code[:, None, None], self.head.diffusion.scale).mean(0) for code in codes]
            noisy.append(torch.stack(agreement) if agreement else x_t[:0])
        return noisy


class LabelMapOutput(Output):
    """Hold an image's noisy signal and its predicted x_0 (n, h, w), and the prediction (out_channels, h, w)."""

    def __init__(self, model: Pix2SeqD, request: Request, x_t: Tensor, x0: Tensor, output: Tensor) -> None:
        self.model, self.request = model, request
        self.x_t, self.x0, self.output = x_t, x0, output

    @property
    def noisy(self) -> Tensor:
        return to_unit(self.x_t, self.model.head.diffusion.scale)

    @property
    def labels(self) -> Tensor:
        """Return the class and the id of each pixel (2, h, w) int64 at the maps' size, 0 for none."""
        return self.model.head.to_labels(self.x0[None])[0]

    def visible(self, max_rows: int) -> Tensor:
        """Return the least significant bits first, of classes and ids in turns: they differ most between objects."""
        places = torch.cat([torch.arange(bits) for bits in self.model.head.diffusion.bits])
        return places.argsort(stable=True)[:max_rows]

    def result(self, view: View) -> dict[str, Any]:
        head, tasks, size = self.model.head, self.request.tasks, view.size
        classes, ids = (x[0] for x in head.probabilities(self.output[None], self.x0[None]))  # (values, h, w)
        num_classes = head.num_labels[0] - 1
        result: dict[str, Any] = {}
        if "semantic" in tasks:
            result["sem_seg"] = view.resize(classes[1 : num_classes + 1], self.resizing)
        if "panoptic" not in tasks and "instance" not in tasks:
            return result
        found = self.labels_and_confidence(view, classes, ids).cpu()  # (3, H, W): all that follows is on the host
        things = self.model.things.cpu()
        voted = majority_vote(found[0].long(), found[1].long(), self.model.min_area)
        segments = find_segments(*voted, found[2], things, self.request.object_threshold)
        if "panoptic" in tasks:
            result["panoptic_seg"] = segments.map, segments.info(things)
        if "instance" in tasks:
            chosen = [i for i, k in enumerate(segments.classes) if things[k]]
            masks = torch.stack([segments.map == i + 1 for i in chosen]) if chosen else torch.zeros(0, *size).bool()
            fields = {
                "pred_masks": masks,
                "pred_boxes": Boxes(boxes_of(masks)),
                "scores": torch.tensor([segments.scores[i] for i in chosen]),
                "pred_classes": torch.tensor([segments.classes[i] for i in chosen], dtype=torch.int64),
                "sources": torch.tensor([segments.ids[i] for i in chosen], dtype=torch.int64),
            }
            result["instances"] = Instances(size, **fields)
        return result

    @property
    def resizing(self) -> str:
        return "nearest-exact" if self.model.upsampling == "nearest" else "bilinear"

    def labels_and_confidence(self, view: View, classes: Tensor, ids: Tensor) -> Tensor:
        """Return class, id and the class's probability at the size of the result, (3, H, W) float32."""
        if self.model.upsampling == "nearest":
            score = classes.gather(0, self.labels[:1])  # (1, h, w)
            return view.resize(torch.cat([self.labels.float(), score]), self.resizing)
        best = [
            [values.max(dim=0) for _, values in resized_strips(x[:count], view)]
            for x, count in zip((classes, ids), self.model.head.num_labels, strict=True)
        ]
        values = [torch.cat([strip.indices for strip in strips]).float() for strips in best]
        return torch.stack([*values, torch.cat([strip.values for strip in best[0]])])
