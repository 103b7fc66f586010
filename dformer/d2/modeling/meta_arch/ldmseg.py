"""The meta-architecture "LDMSeg"."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

from dformer.d2.modeling.backbones import fold_frozen_norms
from dformer.d2.modeling.meta_arch.mask_autoencoder import (
    SegmentMapper,
    SegmentOutput,
    build_mask_autoencoder,
    id_signal,
    id_target,
    segment_settings,
)
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.meta_arch.step import Output, Request
from dformer.diffusion.sampler import last_step
from dformer.diffusion.schedule import add_noise, alpha_bar_table, table_schedule
from dformer.losses.id_maps import IdTarget, id_map_losses
from dformer.losses.normalisers import normaliser
from dformer.models.ldmseg import FeatureLatents, Known, LatentDiffusion, LDMSegHead, SegmentClassifier, draw_known
from dformer.models.unet.image_vae import ImageVAE
from dformer.models.unet.unet2d import UNet2DConditionModel, widen_conv_in
from dformer.postprocess import dense
from dformer.postprocess.id_maps import SegmentMap
from dformer.postprocess.known import fill_unknown
from dformer.signals.bits import ID_ORDERS, draw_ids, int_to_bits
from dformer.utils import rng
from dformer.utils.errors import UserError, did_you_mean
from dformer.weights.checkpoint import read_checkpoint
from dformer.weights.stable_diffusion import image_encoder, unet_without_text

FEATURES = ("res2", "res3", "res4", "res5")
IMAGE_ENCODERS = ("backbone", "stable_diffusion")
PREDICTIONS = ("eps", "x0")
CERTAIN = 100.0  # logit
IMAGE_SCALE = 0.18215  # of Stable Diffusion's image latents


@META_ARCH_REGISTRY.register()
class LDMSeg(SegmentMapper):
    """Segment by denoising latents of maps of ids beside latents of the image (Van Gansbeke and De Brabandere 2024).

    Inference takes, where it is given, `known_map` (h, w) int64 beside an image: ids of segments from 1, and 0 where
    nothing is known. What is known is kept, and the rest is completed (mask inpainting, Alg. 3).

    Args:
        backbone: makes the image latents, with `project`; or None with `vae_image`, an encoder that is not trained.
        classifier: of segments; None for a model of one class.
        id_order: of the ids in training, see MODEL.LDMSEG.ID_ORDER.
        pretrained: files of parts, see `initialize`.
    """

    dense_tasks = ("panoptic",)
    completes = True

    @configurable
    def __init__(
        self,
        *,
        head: LDMSegHead,
        backbone: nn.Module | None,
        project: FeatureLatents | None,
        vae_image: ImageVAE | None,
        classifier: SegmentClassifier | None,
        id_order: str,
        pixel_weight: float,
        class_weight: float,
        pretrained: dict[str, str],
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.head = head
        self.backbone, self.project = backbone, project
        self.vae_image = None if vae_image is None else vae_image.requires_grad_(False)
        self.classifier = classifier
        self.id_order = id_order
        self.pixel_weight, self.class_weight = pixel_weight, class_weight
        self.pretrained = pretrained
        self.compilable = ("head.unet", "vae_image" if backbone is None else "backbone")
        self.max_time = head.diffusion.timesteps - 1
        self.options = {"steps": (1, head.diffusion.timesteps), "seed": (0, 2**31 - 1)}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the keywords of `__init__`."""
        node, shared = cfg.MODEL.LDMSEG, segment_settings(cfg)
        for key, value, known in (
            ("IMAGE_ENCODER", node.IMAGE_ENCODER, IMAGE_ENCODERS),
            ("PREDICTION", node.PREDICTION, PREDICTIONS),
            ("ID_ORDER", node.ID_ORDER, ID_ORDERS),
        ):
            if value not in known:
                choices = f"{did_you_mean(value, known)} (choose one of {', '.join(known)})"
                raise UserError(f'MODEL.LDMSEG.{key} is "{value}"{choices}')
        autoencoder = build_mask_autoencoder(cfg)
        parts: dict[str, Any] = {"backbone": None, "project": None, "vae_image": None}
        if node.IMAGE_ENCODER == "backbone":
            parts["backbone"] = backbone = build_backbone(cfg)
            fold_frozen_norms(backbone)
            features = [backbone.output_shape()[key].channels for key in FEATURES]
            parts["project"], image_channels = FeatureLatents(features, node.IMAGE_CHANNELS), node.IMAGE_CHANNELS
        else:
            parts["vae_image"] = vae = ImageVAE()
            features, image_channels = [vae.encoder.conv_out.in_channels], vae.quant_conv.out_channels // 2
        latents = cfg.MODEL.MASK_AUTOENCODER.LATENT_CHANNELS
        unet = UNet2DConditionModel(
            in_channels=latents + image_channels + latents,
            out_channels=latents,
            channels=node.UNET_CHANNELS,
            attention=node.UNET_ATTENTION,
            layers=node.UNET_LAYERS,
            heads=node.UNET_HEADS,
            groups=node.UNET_GROUPS,
        )
        unet.time_embedding.requires_grad_(not node.FREEZE_TIME_EMBEDDING)
        timesteps = cfg.DIFFUSION.TIMESTEPS
        diffusion = LatentDiffusion(
            alpha_bar=table_schedule(alpha_bar_table(cfg.DIFFUSION.SCHEDULE, timesteps)),
            timesteps=timesteps,
            scale=cfg.DIFFUSION.SIGNAL_SCALE,
            prediction=node.PREDICTION,
            max_snr=node.MAX_SNR,
            self_condition=node.SELF_CONDITION,
            known_share=node.KNOWN_SHARE,
            eta=cfg.DIFFUSION.ETA,
        )
        classes = len(shared["things"])
        return {
            **shared,
            **parts,
            "head": LDMSegHead(unet=unet, mask_autoencoder=autoencoder, diffusion=diffusion),
            "classifier": SegmentClassifier(features, classes) if classes > 1 else None,
            "id_order": node.ID_ORDER,
            "pixel_weight": node.PIXEL_WEIGHT,
            "class_weight": node.CLASS_WEIGHT,
            "pretrained": {
                "MODEL.MASK_AUTOENCODER.WEIGHTS": cfg.MODEL.MASK_AUTOENCODER.WEIGHTS,
                "MODEL.LDMSEG.IMAGE_WEIGHTS": node.IMAGE_WEIGHTS,
                "MODEL.LDMSEG.UNET_WEIGHTS": node.UNET_WEIGHTS,
            },
        }

    def initialize(self) -> None:
        """Load the parts that were trained before: the mask autoencoder, and what comes from Stable Diffusion."""
        if path := self.pretrained[(key := "MODEL.MASK_AUTOENCODER.WEIGHTS")]:
            part = "mask_autoencoder."
            weights = {name.removeprefix("head."): x for name, x in read_checkpoint(path)["model"].items()}
            weights = {name.removeprefix(part): x for name, x in weights.items() if name.startswith(part)}
            load_part(self.head.mask_autoencoder, weights, key, path)
        if path := self.pretrained[(key := "MODEL.LDMSEG.IMAGE_WEIGHTS")]:
            if self.vae_image is None:
                raise UserError(f'{key} is given, but MODEL.LDMSEG.IMAGE_ENCODER is not "stable_diffusion"')
            load_part(self.vae_image, image_encoder(path), key, path)
        if path := self.pretrained[(key := "MODEL.LDMSEG.UNET_WEIGHTS")]:
            weights = unet_without_text(path)
            inputs = self.head.unet.conv_in.in_channels // self.head.mask_autoencoder.latent_channels
            if "conv_in.weight" in weights:  # image and condition begin without influence
                weights["conv_in.weight"] = widen_conv_in(weights["conv_in.weight"], ["copy"] + ["zero"] * (inputs - 1))
            load_part(self.head.unet, weights, key, path)

    def image_latents(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return image latents (B, C, h, w), and the features that segments are classified by."""
        size = images.shape[2] // self.stride, images.shape[3] // self.stride
        if self.vae_image is None:
            assert self.backbone is not None and self.project is not None
            maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
            features = [maps[key] for key in FEATURES]
            return self.project(features, size), features
        with torch.no_grad():
            mean, _, features = self.vae_image(images)
            return IMAGE_SCALE * F.interpolate(mean, size), [features]

    @property
    def stride(self) -> int:
        return self.head.mask_autoencoder.stride

    def compute_losses(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> dict[str, Tensor]:
        diffusion = self.head.diffusion
        image_latents, features = self.image_latents(images)  # (B, C, h, w)
        shape = (self.head.mask_autoencoder.latent_channels, *image_latents.shape[2:])
        noise = rng.normal(generators, shape)
        t = torch.stack([torch.randint(diffusion.timesteps, (), generator=g, device=g.device) for g in generators])
        conditioned = torch.stack([torch.rand((), generator=g, device=g.device) for g in generators])
        targets = self.targets(batch, images.shape[-2:], generators)
        x0 = self.head.encode(id_signal(targets, self.head.mask_autoencoder.num_bits))  # (B, Z, h, w)
        conditioned = conditioned < diffusion.self_condition
        known = draw_known(x0, diffusion.known_share, generators) if diffusion.known_share > 0 else None
        predicted, error = self.head.training_step(x0, image_latents, t, noise, conditioned, known)
        ids = torch.stack([target.ids for target in targets])
        is_known = F.interpolate(ids[:, None].float(), shape[1:]) != 0  # (B, 1, h, w)
        # As published: void counts in the mean, but has no loss. (The paper sums over the latents of an image.)
        losses = {"loss_latent": (error * is_known).mean()}
        if self.pixel_weight > 0:
            decoded = id_map_losses(self.head.decode(predicted), targets, self.points, generators)
            losses |= {name: self.pixel_weight * loss for name, loss in decoded.items()}
        if self.classifier is not None:
            losses["loss_class"] = self.class_weight * self.class_loss(features, batch, images.shape[-2:])
        return losses

    def targets(self, batch: Batch, canvas: torch.Size, generators: list[torch.Generator]) -> list[IdTarget]:
        """Return each image's map of ids, in the order of MODEL.LDMSEG.ID_ORDER."""
        targets, num_ids = [], self.head.mask_autoencoder.num_ids
        for item, generator in zip(batch, generators, strict=True):
            panoptic_map = self.padded_map(item, (canvas[0], canvas[1]))
            classes = item["instances"].gt_classes
            stuff = self.stuff_classes[classes]
            ids = draw_ids(panoptic_map, len(classes), num_ids, self.id_order, generator, stuff)
            targets.append(id_target(panoptic_map, ids))
        return targets

    def class_loss(self, features: list[Tensor], batch: Batch, canvas: torch.Size) -> Tensor:
        """Return the mean cross-entropy of the annotated segments' classes; 0 if there is none."""
        assert self.classifier is not None
        logits, labels = [], []
        for b, item in enumerate(batch):
            numbers = torch.arange(1, len(item["instances"]) + 1, device=self.device)
            masks = self.padded_map(item, (canvas[0], canvas[1])) == numbers[:, None, None]  # (G, H, W)
            logits.append(self.classifier([x[b] for x in features], masks))
            labels.append(item["instances"].gt_classes.to(self.device, non_blocking=True))
        total = F.cross_entropy(torch.cat(logits).float(), torch.cat(labels), reduction="sum")
        return total / normaliser(total.new_full((), sum(map(len, labels))), minimum=1)

    def sample(
        self, images: Tensor, batch: Batch, generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float | None, list[Output]]]:
        image_latents, features = self.image_latents(images)
        draw_noise = partial(rng.normal, generators, self.noise_shape(images.shape[-2:], request))
        known, maps = self.known(batch, images)
        for step in self.head.sample(image_latents.float(), draw_noise, request.steps, known):
            yield (
                step.t,
                [
                    LatentOutput(self, request, x0, x_t, [x[b] for x in features], None if maps is None else maps[b])
                    for b, (x0, x_t) in enumerate(zip(step.output, step.x_t, strict=True))
                ],
            )

    def noise_shape(self, canvas: Sequence[int], request: Request) -> tuple[int, ...]:
        return self.head.mask_autoencoder.latent_channels, canvas[0] // self.stride, canvas[1] // self.stride

    def predictions(self, images: Tensor, draw_noise: Callable[[], Tensor], request: Request) -> dict[str, Tensor]:
        """Return `logits` (B, N, h', w') of the ids, and `class_scores` (B, N, K) of the segments that they show."""
        image_latents, features = self.image_latents(images)
        last = last_step(self.head.sample(image_latents.float(), draw_noise, request.steps))
        logits = self.head.decode(last.output)
        if self.classifier is None:
            return {"logits": logits, "class_scores": torch.ones_like(logits[:, :, :1, 0])}
        class_scores = self.classifier(features, logits.softmax(1)).softmax(-1).float()
        return {"logits": logits, "class_scores": class_scores}

    def dense_results(
        self, predictions: dict[str, Tensor], canvas: tuple[int, int], task: str, request: Request
    ) -> dict[str, Tensor]:
        logits = F.interpolate(predictions["logits"], canvas, mode="bilinear")
        things = self.things.to(logits.device)
        return dense.id_panoptic(logits, predictions["class_scores"], things, self.thresholds(request))

    def known(self, batch: Batch, images: Tensor) -> tuple[Known | None, Tensor | None]:
        """Return the given latents, and the given ids (B, H, W) on the canvas; None if no image has any."""
        if all("known_map" not in item for item in batch):
            return None, None
        canvas, num_ids = (images.shape[2], images.shape[3]), self.head.mask_autoencoder.num_ids
        maps, filled = torch.zeros(2, len(batch), *canvas, dtype=torch.int64, device=self.device)
        for b, item in enumerate(batch):
            if "known_map" in item:
                given = item["known_map"]
                if given.amin() < 0 or given.amax() >= num_ids:
                    raise UserError(f"known_map: ids are 1 to {num_ids - 1} (MODEL.MASK_AUTOENCODER.NUM_BITS)")
                height, width = given.shape
                maps[b, :height, :width] = given.to(self.device, non_blocking=True)
                filled[b, :height, :width] = fill_unknown(given).to(self.device, non_blocking=True)
        signal = 2 * int_to_bits(filled, self.head.mask_autoencoder.num_bits, void=0) - 1
        is_known = maps > 0
        latents = self.head.encode(signal) * is_known.flatten(1).any(1)[:, None, None, None]
        mask = F.interpolate(is_known[:, None].float(), latents.shape[2:]) > 0  # (B, 1, h, w)
        return Known(latents, mask), maps

    def noisy_targets(self, batch: Batch, t: float) -> list[Tensor]:
        """Return each image's map of ids, encoded, noised at time `t` and decoded: maps of its objects."""
        timesteps = self.head.diffusion.timesteps
        if not 0 <= t < timesteps:
            raise UserError(f"times are 0 to {timesteps - 1} (DIFFUSION.TIMESTEPS), got {t}")
        alpha_bar_t = self.head.diffusion.alpha_bar(torch.tensor(int(t), device=self.device))
        noisy = []
        for item in batch:
            height, width = item["instances"].image_size
            canvas = height + -height % self.size_divisibility, width + -width % self.size_divisibility
            panoptic_map, count = self.padded_map(item, canvas), len(item["instances"])
            generator, autoencoder = rng.generator(self.device, self.request.seed), self.head.mask_autoencoder
            ids = draw_ids(panoptic_map, count, autoencoder.num_ids, "random", generator)
            x0 = self.head.encode(id_signal([id_target(panoptic_map, ids)], autoencoder.num_bits))
            noise = torch.randn(x0.shape, generator=generator, device=self.device)
            x_t = add_noise(x0, noise, alpha_bar_t) / self.head.diffusion.scale
            noisy.append(autoencoder.decode_at(x_t, canvas)[0].softmax(0)[ids, :height, :width])
        return noisy


class LatentOutput(SegmentOutput):
    """Hold the latents of an image after a step; logits are decoded when somebody asks for them."""

    def __init__(
        self,
        model: LDMSeg,
        request: Request,
        x0: Tensor,
        x_t: Tensor,
        features: list[Tensor],
        known: Tensor | None,
    ) -> None:
        super().__init__(model, request)
        self.head, self.classifier = model.head, model.classifier
        self.x0, self.x_t, self.features, self.known = x0, x_t, features, known

    @cached_property
    def logits(self) -> Tensor:
        """Return logits of the ids (N, h', w'), on the canvas where ids are known there: these stay."""
        logits = self.head.decode(self.x0[None])
        if self.known is None:
            return logits[0]
        logits = F.interpolate(logits, self.known.shape, mode="bilinear")[0]
        given = CERTAIN * (2 * F.one_hot(self.known, len(logits)).movedim(2, 0).float() - 1)
        return torch.where(self.known > 0, given, logits)

    @property
    def noisy(self) -> Tensor:
        return self.head.decode(self.x_t[None])[0].softmax(0)

    def visible(self, max_rows: int) -> Tensor:
        """Return the ids that win most pixels, but void."""
        winner = self.logits.argmax(0).flatten()
        areas = winner.new_zeros(len(self.logits)).scatter_add_(0, winner, torch.ones_like(winner))[1:]
        return areas.argsort(descending=True, stable=True)[:max_rows] + 1

    def class_scores(self, found: SegmentMap) -> Tensor:
        if self.classifier is None:
            return torch.ones(len(found.ids), 1)
        masks = self.logits.softmax(0)[found.ids.to(self.logits.device, non_blocking=True)]
        return self.classifier(self.features, masks).softmax(1).float().cpu()


def load_part(module: nn.Module, weights: Mapping[str, Tensor], key: str, path: str) -> None:
    """Load a part of the model, whose file is `path` by the config's `key`; a `UserError` if it does not fit."""
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UserError(f"{key}: {path} does not fit this config: {error}") from error
