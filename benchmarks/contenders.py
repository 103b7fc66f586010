"""The models that benchmarks/model.py compares, each as one function a case to be called again and again.

All have ResNet-50 with frozen batch norm, the same widths, layers, queries, classes and points of the loss, and random
weights. An untrained model is sure of nothing, so that post-processing would have nothing to do: in all of them the
classes of some queries are set, as a trained model's on an image with as many objects.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.engine.optimizer import build_optimizer, clip_gradients
from dformer.utils import rng

CONFIGS = Path(__file__).resolve().parent.parent / "configs/coco/panoptic"
OURS = {"dformer": "dformer_r50_50ep.yaml", "mask2former": "mask2former_r50_50ep.yaml"}
MODELS = (*OURS, "transformers")
TASKS = ("panoptic", "semantic", "instance")
OBJECTS = 20  # queries that are sure of a class
SURE = 20.0  # added to a class logit, so that its probability is 1


class Case(NamedTuple):
    """What is measured: `mode` is "forward" (model alone), "inference" (with post-processing) or "train" (a step)."""

    model: str
    mode: str
    size: tuple[int, int]  # height, width of the images
    batch: int
    dtype: str  # of torch.autocast; "float32" is without
    steps: int  # sampling steps; 1 for models that do not sample, and in training
    compiled: bool
    masks: int  # queries
    mask_stride: int  # DIFFUSION.MASK_STRIDE
    tasks: tuple[str, ...]  # results of the post-processing
    objects: int  # in each training image


class Contender(NamedTuple):
    """`run` does once what the case says. `parts` are the methods that its time is made of, by the name of the part."""

    run: Callable[[], None]
    parts: Mapping[str, tuple[Any, str]]
    parameters: int


def transformers_missing() -> bool:
    """Whether the extra `bench` is not installed."""
    return importlib.util.find_spec("transformers") is None


def prepare(case: Case, device: str, overrides: tuple[str, ...] = ()) -> Contender:
    """Build what `case` needs; models are shared between cases. `overrides` are KEY VALUE of our config."""
    cfg = config(case, device, overrides)
    if case.model in OURS:
        model = build_ours(case.model, case.masks, case.mask_stride, case.compiled, device, overrides)
        contender = ours_trained if case.mode == "train" else ours_inferred
    else:
        model = build_transformers(case.masks, case.compiled, device, overrides)
        contender = transformers_trained if case.mode == "train" else transformers_inferred
    run, parts = contender(model, case, cfg)
    return Contender(run, parts, sum(parameter.numel() for parameter in model.parameters()))


def config(case: Case, device: str, overrides: tuple[str, ...]) -> CfgNode:
    """The published COCO config of our models; the peer takes its numbers from the same."""
    return _config(case.model, case.masks, case.mask_stride, device, overrides)


def _config(model: str, masks: int, mask_stride: int, device: str, overrides: tuple[str, ...]) -> CfgNode:
    cfg = get_cfg()
    chosen = {
        "MODEL.WEIGHTS": "",
        "MODEL.DEVICE": device,
        "MODEL.MASK_DECODER.NUM_QUERIES": str(masks),
        "DIFFUSION.MASK_STRIDE": str(mask_stride),
    }
    words = [word for pair in chosen.items() for word in pair]
    merge_config(cfg, str(CONFIGS / OURS.get(model, OURS["mask2former"])), [*words, *overrides])
    return cfg


@cache
def build_ours(
    name: str, masks: int, mask_stride: int, compiled: bool, device: str, overrides: tuple[str, ...]
) -> nn.Module:
    """DFormer or Mask2Former of this project."""
    torch.manual_seed(0)
    model = build_model(_config(name, masks, mask_stride, device, overrides))
    decide(model.head.mask_decoder.class_embed)
    if compiled:
        for module in (model.backbone, model.head.pixel_decoder, model.head.mask_decoder):
            module.compile(dynamic=False)
    return model


@cache
def build_transformers(masks: int, compiled: bool, device: str, overrides: tuple[str, ...]) -> nn.Module:
    """Transformers' Mask2Former, of the same size."""
    import transformers
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    cfg = _config("mask2former", masks, 4, device, overrides)
    pixel_decoder, mask_decoder, criterion = cfg.MODEL.PIXEL_DECODER, cfg.MODEL.MASK_DECODER, cfg.MODEL.CRITERION
    backbone = ResNetConfig(
        depths=[3, 4, 6, 3],
        hidden_sizes=[256, 512, 1024, 2048],
        layer_type="bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()  # it warns of every backbone but Swin
    configuration = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=cfg.MODEL.NUM_CLASSES,
        feature_size=pixel_decoder.CONV_DIM,
        mask_feature_size=pixel_decoder.MASK_DIM,
        encoder_layers=pixel_decoder.NUM_LAYERS,
        encoder_feedforward_dim=pixel_decoder.FFN_DIM,
        num_queries=mask_decoder.NUM_QUERIES,
        hidden_dim=mask_decoder.HIDDEN_DIM,
        num_attention_heads=mask_decoder.NUM_HEADS,
        dim_feedforward=mask_decoder.FFN_DIM,
        decoder_layers=mask_decoder.NUM_LAYERS + 1,  # it counts the learned queries' own prediction
        train_num_points=criterion.NUM_POINTS,
    )
    model = Mask2FormerForUniversalSegmentation(configuration).to(device)
    decide(model.class_predictor)
    if compiled:
        model.compile(dynamic=False)
    return model


def decide(class_embed: nn.Linear) -> None:
    """Make OBJECTS of the queries sure of a class each, and all others that they are none, whatever the image."""
    classes = class_embed.out_features - 1

    def add_choice(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        query = torch.arange(logits.shape[-2], device=logits.device)
        chosen = torch.where(query < OBJECTS, query * 7 % classes, classes)
        return logits + SURE * nn.functional.one_hot(chosen, classes + 1)

    class_embed.register_forward_hook(add_choice)


def ours_inferred(model: Any, case: Case, cfg: CfgNode) -> tuple[Callable[[], None], dict[str, tuple[Any, str]]]:
    """Inference of one of our models, from images on its device."""
    images = [{"image": image, "height": case.size[0], "width": case.size[1]} for image in pictures(case, cfg)]

    def run() -> None:
        model.eval()
        model.sampling_steps, model.tasks = case.steps, case.tasks
        with torch.no_grad(), autocast(case, cfg):
            if case.mode == "inference":
                model(images)
                return
            tensor = model.preprocess(images).tensor
            generators = [rng.generator(model.device, model.inference_seed) for _ in images]
            _ = model.predict(model.features(tensor), generators).masks  # which may be computed only when asked for

    return run, {**our_parts(model), "post-processing": (model, "result")}


def ours_trained(model: Any, case: Case, cfg: CfgNode) -> tuple[Callable[[], None], dict[str, tuple[Any, str]]]:
    """A training step of one of our models, as the trainer does it but for its log."""
    batch = []
    for index, (image, (classes, masks)) in enumerate(zip(pictures(case, cfg), objects(case, cfg), strict=True)):
        instances = Instances(case.size, gt_classes=classes, gt_masks=masks)
        batch.append({"image": image, "image_id": index, "instances": instances})
    optimizer, scaler = still(build_optimizer(cfg, model)), grad_scaler(case, cfg)

    def run() -> None:
        with autocast(case, cfg):
            loss = sum(model.train()(batch).values())
        descend(loss, optimizer, scaler, cfg)

    parts = {"matching": (model.criterion, "match"), "losses": (model.criterion, "forward")}
    return run, {**our_parts(model), **parts, **step_parts(optimizer)}


def our_parts(model: Any) -> dict[str, tuple[Any, str]]:
    return {
        "backbone": (model.backbone, "forward"),
        "pixel decoder": (model.head.pixel_decoder, "forward"),
        "mask decoder": (model.head.mask_decoder, "forward"),
    }


def transformers_inferred(
    model: Any, case: Case, cfg: CfgNode
) -> tuple[Callable[[], None], dict[str, tuple[Any, str]]]:
    """Inference of Transformers' model, from normalised images, with the post-processing of its image processor."""
    from transformers import Mask2FormerImageProcessor

    processor = Mask2FormerImageProcessor()
    pixel_values = normalised(case, cfg)
    functions = {task: getattr(processor, f"post_process_{task}_segmentation") for task in case.tasks}
    sizes = [case.size] * case.batch

    def post_process(outputs: Any) -> None:
        for task, function in functions.items():
            if task == "instance":  # it writes to a map on the CPU, so that the masks must be there
                masks, logits = outputs.masks_queries_logits.cpu(), outputs.class_queries_logits.cpu()
                outputs = SimpleNamespace(masks_queries_logits=masks, class_queries_logits=logits)
            function(outputs, target_sizes=sizes, **({"label_ids_to_fuse": set()} if task == "panoptic" else {}))

    processor.post_process = post_process

    def run() -> None:
        model.eval()
        with torch.no_grad(), autocast(case, cfg):
            outputs = model(pixel_values)
            if case.mode == "inference":
                processor.post_process(outputs)

    return run, {**transformers_parts(model), "post-processing": (processor, "post_process")}


def transformers_trained(model: Any, case: Case, cfg: CfgNode) -> tuple[Callable[[], None], dict[str, tuple[Any, str]]]:
    """A training step of Transformers' model with its own matching and loss."""
    pixel_values = normalised(case, cfg)
    classes, masks = zip(*objects(case, cfg), strict=True)
    labels = {"class_labels": list(classes), "mask_labels": [mask.float() for mask in masks]}
    batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in batch_norms:
        module.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, scaler = still(torch.optim.AdamW(trained, fused=True)), grad_scaler(case, cfg)

    def run() -> None:
        model.train()
        for module in batch_norms:
            module.eval()
        with autocast(case, cfg):
            loss = model(pixel_values, **labels).loss
        descend(loss, optimizer, scaler, cfg)

    parts = {"matching": (model.criterion.matcher, "forward"), "losses": (model.criterion, "forward")}
    return run, {**transformers_parts(model), **parts, **step_parts(optimizer)}


def transformers_parts(model: Any) -> dict[str, tuple[Any, str]]:
    return {
        "backbone": (model.model.pixel_level_module.encoder, "forward"),
        "pixel decoder": (model.model.pixel_level_module.decoder, "forward"),
        "mask decoder": (model.model.transformer_module, "forward"),
    }


def step_parts(optimizer: torch.optim.Optimizer) -> dict[str, tuple[Any, str]]:
    return {"backward": (Tensor, "backward"), "optimiser": (optimizer, "step")}


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, cfg: CfgNode) -> None:
    """Backward, clipping and the optimiser's step; no gradients are left."""
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_gradients(cfg, optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def still(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser at a learning rate of 0: all of the work, and the same model at the next call."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def grad_scaler(case: Case, cfg: CfgNode) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(cfg.MODEL.DEVICE, enabled=case.dtype == "float16")


def autocast(case: Case, cfg: CfgNode) -> torch.autocast:
    dtype = getattr(torch, case.dtype)
    return torch.autocast(cfg.MODEL.DEVICE, None if dtype == torch.float32 else dtype, enabled=dtype != torch.float32)


def pictures(case: Case, cfg: CfgNode) -> list[Tensor]:
    """B random images (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.batch, 3, *case.size)
    return list(torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(cfg.MODEL.DEVICE))


def normalised(case: Case, cfg: CfgNode) -> Tensor:
    """The same images as one float tensor (B, 3, H', W'), normalised and padded as our models do it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    images = torch.stack(pictures(case, cfg)).cpu()
    right, bottom = (-side % cfg.MODEL.SIZE_DIVISIBILITY for side in (case.size[1], case.size[0]))
    return nn.functional.pad((images - mean) / std, (0, right, 0, bottom)).to(cfg.MODEL.DEVICE)


def objects(case: Case, cfg: CfgNode) -> list[tuple[Tensor, Tensor]]:
    """Of each image, classes (G,) int64 and masks (G, H, W) bool: ellipses of about an object's size."""
    generator = torch.Generator().manual_seed(2)
    height, width = case.size
    targets = []
    for _ in range(case.batch):
        classes = torch.randint(cfg.MODEL.NUM_CLASSES, (case.objects,), generator=generator)
        centre_y, centre_x = torch.rand(2, case.objects, 1, 1, generator=generator)
        radius_y, radius_x = 0.05 + 0.2 * torch.rand(2, case.objects, 1, 1, generator=generator)
        y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
        masks = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1
        targets.append((classes.to(cfg.MODEL.DEVICE), masks.to(cfg.MODEL.DEVICE)))
    return targets
