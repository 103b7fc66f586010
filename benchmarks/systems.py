"""The models that benchmarks/model.py compares: our DFormer and Mask2Former, and Transformers' Mask2Former.

All have ResNet-50 with frozen batch norm, the same widths, layers, queries, classes and loss points, random weights. As
an untrained model finds nothing to post-process, the classes of some queries are set to be sure, in all models.
"""

from collections.abc import Callable
from dataclasses import replace
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
from dformer.postprocess import TASKS, queries

CONFIGS = Path(__file__).resolve().parent.parent / "configs/coco/panoptic"
OURS = {"dformer": "dformer_r50_50ep.yaml", "mask2former": "mask2former_r50_50ep.yaml"}
OBJECTS = 10  # in each training image
CONFIDENT = 20  # queries that are sure of a class
MARGIN = 20.0  # added to a class logit, so that its probability is 1
Parts = dict[str, tuple[Any, str]]


class Case(NamedTuple):
    """Say what is measured."""

    model: str
    mode: str  # "forward" (model alone), "inference" (with post-processing) or "train" (a step)
    size: str  # height x width of the images
    batch: int
    dtype: str  # of torch.autocast; "float32" is without
    steps: int  # sampling steps; 1 for models that do not sample, and in training
    compiled: bool
    masks: int  # queries
    mask_stride: int  # DIFFUSION.MASK_STRIDE
    results: str  # of the post-processing: a task or "all"

    @property
    def sides(self) -> list[int]:
        """Return height and width."""
        return [int(side) for side in self.size.split("x")]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks of the post-processing."""
        return TASKS if self.results == "all" else (self.results,)


class System(NamedTuple):
    """Hold a model with a case's inputs."""

    run: Callable[[], None]  # does once what the case says
    parts: Parts  # the methods that take its time, by name
    parameters: int


def prepare(case: Case, device: str, overrides: list[str]) -> System:
    """Build what a case needs; models are shared between cases. `overrides` are KEY VALUE of our config."""
    model, cfg = build(case.model, case.masks, case.mask_stride, case.compiled, device, tuple(overrides))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    inference, loss, parts = (ours if case.model in OURS else transformers)(model, case, cfg)
    dtype = None if case.dtype == "float32" else getattr(torch, case.dtype)

    def infer() -> None:
        model.eval()
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
            inference()

    if case.mode != "train":
        return System(infer, parts, parameters)
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # all of the work, and the same model at the next call
    scaler = torch.amp.GradScaler(device, enabled=case.dtype == "float16")

    def train() -> None:
        model.train()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            value = loss()
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        clip_gradients(cfg, optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    parts |= {"backward": (Tensor, "backward"), "optimizer": (optimizer, "step")}
    return System(train, parts, parameters)


@cache
def build(
    name: str, masks: int, mask_stride: int, compiled: bool, device: str, overrides: tuple[str, ...]
) -> tuple[Any, CfgNode]:
    """Build a model, and return it with the published COCO config that has its numbers."""
    cfg = get_cfg()
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "MODEL.MASK_DECODER.NUM_QUERIES", str(masks)]
    options += ["DIFFUSION.MASK_STRIDE", str(mask_stride), *overrides]
    merge_config(cfg, str(CONFIGS / OURS.get(name, OURS["mask2former"])), options)
    torch.manual_seed(0)
    model: Any = build_model(cfg) if name in OURS else build_transformers(cfg)
    set_classes(model, cfg.MODEL.NUM_CLASSES)
    if compiled:
        parts = [model.get_submodule(part) for part in model.compilable] if name in OURS else [model]
        for part in parts:
            part.compile(dynamic=False)
    return model, cfg


def build_transformers(cfg: CfgNode) -> nn.Module:
    """Build Transformers' Mask2Former of the size that the config says."""
    import transformers

    transformers.logging.set_verbosity_error()  # it warns of every backbone but Swin
    config = transformers.Mask2FormerConfig(  # its other numbers are the published ones
        backbone_config=transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
        num_labels=cfg.MODEL.NUM_CLASSES,
        encoder_layers=cfg.MODEL.PIXEL_DECODER.NUM_LAYERS,
        num_queries=cfg.MODEL.MASK_DECODER.NUM_QUERIES,
        decoder_layers=cfg.MODEL.MASK_DECODER.NUM_LAYERS + 1,  # it counts the learned queries' own prediction
        train_num_points=cfg.MODEL.CRITERION.NUM_POINTS,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).to(cfg.MODEL.DEVICE)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
            module.train = lambda mode=True: None  # type: ignore # stays frozen
    return model


def set_classes(model: nn.Module, classes: int) -> None:
    """Make CONFIDENT of the queries sure of a class each, and all others sure of "no object", whatever the image."""

    def add_choice(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        query = torch.arange(logits.shape[-2], device=logits.device)
        chosen = torch.where(query < CONFIDENT, query * 7 % classes, classes)
        return logits + MARGIN * nn.functional.one_hot(chosen, classes + 1)

    (layer,) = (m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes + 1)
    layer.register_forward_hook(add_choice)


def ours(model: Any, case: Case, cfg: CfgNode) -> tuple[Callable[[], Any], Callable[[], Tensor], Parts]:
    """Return inference, loss and parts of one of our models."""
    inputs = [
        {"image": image, "image_id": index, "instances": Instances(case.sides, gt_classes=classes, gt_masks=masks)}
        for index, (image, (classes, masks)) in enumerate(zip(images(case, cfg), targets(case, cfg), strict=True))
    ]
    request = replace(model.request, tasks=case.tasks, steps=case.steps)

    def inference() -> Any:
        for step in model.steps(inputs, request):  # noqa: B007
            pass
        return [output.last for output in step.outputs] if case.mode == "forward" else step.results

    parts = {
        "backbone": (model.backbone, "forward"),
        "pixel decoder": (model.head.pixel_decoder, "forward"),
        "mask decoder": (model.head.mask_decoder, "forward"),
        "post-processing": (queries, "collect"),
        "matching": (model.criterion, "match"),
        "losses": (model.criterion, "forward"),
    }
    return inference, lambda: sum(model(inputs).values()), parts


def transformers(model: Any, case: Case, cfg: CfgNode) -> tuple[Callable[[], Any], Callable[[], Tensor], Parts]:
    """Return inference, loss and parts of Transformers' model, on normalised images."""
    from transformers import Mask2FormerImageProcessor

    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    right, bottom = (-side % cfg.MODEL.SIZE_DIVISIBILITY for side in reversed(case.sides))
    pixels = nn.functional.pad((images(case, cfg).cpu() - mean) / std, (0, right, 0, bottom)).to(cfg.MODEL.DEVICE)
    classes, masks = zip(*targets(case, cfg), strict=True)
    labels = {"class_labels": list(classes), "mask_labels": [mask.float() for mask in masks]}
    processor = Mask2FormerImageProcessor()

    def postprocess(outputs: Any) -> None:
        for task in case.tasks:
            if task == "instance":  # it writes to a map on the CPU, so the masks must be there
                fields = ("masks_queries_logits", "class_queries_logits")
                outputs = SimpleNamespace(**{field: getattr(outputs, field).cpu() for field in fields})
            options: dict[str, Any] = {"label_ids_to_fuse": set()} if task == "panoptic" else {}
            function = getattr(processor, f"post_process_{task}_segmentation")
            function(outputs, target_sizes=[case.sides] * case.batch, **options)

    processor.postprocess = postprocess

    def inference() -> None:
        outputs = model(pixels)
        if case.mode == "inference":
            processor.postprocess(outputs)

    parts = {
        "backbone": (model.model.pixel_level_module.encoder, "forward"),
        "pixel decoder": (model.model.pixel_level_module.decoder, "forward"),
        "mask decoder": (model.model.transformer_module, "forward"),
        "post-processing": (processor, "postprocess"),
        "matching": (model.criterion.matcher, "forward"),
        "losses": (model.criterion, "forward"),
    }
    return inference, lambda: model(pixels, **labels).loss, parts


def images(case: Case, cfg: CfgNode) -> Tensor:
    """Return random images (B, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.batch, 3, *case.sides)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(cfg.MODEL.DEVICE)


def targets(case: Case, cfg: CfgNode) -> list[tuple[Tensor, Tensor]]:
    """Return classes (G,) int64 and masks (G, H, W) bool of each image: ellipses of about an object's size."""
    generator = torch.Generator().manual_seed(2)
    y, x = (torch.linspace(0, 1, side) for side in case.sides)
    result = []
    for _ in range(case.batch):
        classes = torch.randint(cfg.MODEL.NUM_CLASSES, (OBJECTS,), generator=generator)
        centre_y, centre_x = torch.rand(2, OBJECTS, 1, 1, generator=generator)
        radius_y, radius_x = 0.05 + 0.2 * torch.rand(2, OBJECTS, 1, 1, generator=generator)
        masks = ((y[:, None] - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1
        result.append((classes.to(cfg.MODEL.DEVICE), masks.to(cfg.MODEL.DEVICE)))
    return result
