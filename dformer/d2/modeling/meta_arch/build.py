"""From a config to the parts of a meta-architecture. Nothing below this floor reads a config."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from dformer.d2.data.datasets import model_classes
from dformer.d2.modeling.backbones import fold_frozen_norms
from dformer.d2.modeling.meta_arch.step import Request
from dformer.losses.criterion import Criterion
from dformer.losses.matcher import LossWeights
from dformer.models.mask_decoder import MaskDecoder
from dformer.models.pixel_decoder import STRIDES, FPNPixelDecoder, MSDeformAttnPixelDecoder, PixelDecoder
from dformer.models.tracking_branch import TrackingBranch
from dformer.utils.errors import UserError


def backbone_channels(shapes: dict[str, ShapeSpec]) -> tuple[int, int, int, int]:
    """Return the channels of a backbone's maps of strides 4, 8, 16, 32; a `UserError` if it has others."""
    strides = tuple(shapes[key].stride for key in ("res2", "res3", "res4", "res5"))
    if strides != STRIDES:
        raise UserError(f"MODEL.BACKBONE.NAME: the backbone's strides are {strides}, but {STRIDES} are needed")
    c2, c3, c4, c5 = (shapes[key].channels for key in ("res2", "res3", "res4", "res5"))
    return c2, c3, c4, c5


def _build_pixel_decoder(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> PixelDecoder:
    decoder, channels = cfg.MODEL.PIXEL_DECODER, backbone_channels(shapes)
    if decoder.NAME == "FPNPixelDecoder":
        return FPNPixelDecoder(in_channels=channels, conv_dim=decoder.CONV_DIM, mask_dim=decoder.MASK_DIM)
    if decoder.NAME == "MSDeformAttnPixelDecoder":
        return MSDeformAttnPixelDecoder(
            in_channels=channels,
            conv_dim=decoder.CONV_DIM,
            mask_dim=decoder.MASK_DIM,
            num_layers=decoder.NUM_LAYERS,
            num_heads=decoder.NUM_HEADS,
            num_points=decoder.NUM_POINTS,
            ffn_dim=decoder.FFN_DIM,
        )
    raise UserError(
        f'MODEL.PIXEL_DECODER.NAME is "{decoder.NAME}", must be "MSDeformAttnPixelDecoder" or "FPNPixelDecoder"'
    )


def _build_mask_decoder(cfg: CfgNode, classes: int, num_evidence: int) -> MaskDecoder:
    decoder = cfg.MODEL.MASK_DECODER
    return MaskDecoder(
        in_channels=cfg.MODEL.PIXEL_DECODER.CONV_DIM,
        mask_dim=cfg.MODEL.PIXEL_DECODER.MASK_DIM,
        num_classes=classes,
        num_queries=decoder.NUM_QUERIES,
        hidden_dim=decoder.HIDDEN_DIM,
        num_heads=decoder.NUM_HEADS,
        ffn_dim=decoder.FFN_DIM,
        num_layers=decoder.NUM_LAYERS,
        num_evidence=num_evidence,
    )


def _build_criterion(cfg: CfgNode, classes: int) -> Criterion:
    criterion = cfg.MODEL.CRITERION
    if len(criterion.CLASS_WEIGHTS) not in (0, classes):
        given = len(criterion.CLASS_WEIGHTS)
        raise UserError(f"MODEL.CRITERION.CLASS_WEIGHTS has {given} numbers for {classes} classes")
    return Criterion(
        num_classes=classes,
        weights=LossWeights(criterion.CLASS_WEIGHT, criterion.MASK_WEIGHT, criterion.DICE_WEIGHT),
        cost_weights=LossWeights(criterion.CLASS_COST, criterion.MASK_WEIGHT, criterion.DICE_WEIGHT),
        class_weights=criterion.CLASS_WEIGHTS,
        no_object_weight=criterion.NO_OBJECT_WEIGHT,
        num_points=criterion.NUM_POINTS,
        oversample_ratio=criterion.OVERSAMPLE_RATIO,
        importance_sample_ratio=criterion.IMPORTANCE_SAMPLE_RATIO,
    )


def _build_tracking_branch(cfg: CfgNode) -> TrackingBranch | None:
    branch = cfg.MODEL.TRACKING_BRANCH
    if branch.EMBED_DIM == 0:
        return None
    if cfg.INPUT.TARGET != "masks":
        raise UserError(f'MODEL.TRACKING_BRANCH needs INPUT.TARGET "masks", not "{cfg.INPUT.TARGET}"')
    return TrackingBranch(cfg.MODEL.MASK_DECODER.HIDDEN_DIM, branch.EMBED_DIM, branch.WEIGHT, branch.AUX_WEIGHT)


def segmenter_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the keywords of `Segmenter`, the same for all systems."""
    request = Request(
        tasks=tuple(cfg.TEST.TASKS),
        steps=cfg.DIFFUSION.SAMPLING_STEPS,
        seed=cfg.DIFFUSION.SEED,
        object_threshold=cfg.TEST.OBJECT_THRESHOLD,
        overlap_threshold=cfg.TEST.OVERLAP_THRESHOLD,
        tile=cfg.TEST.TILE,
        tile_overlap=cfg.TEST.TILE_OVERLAP,
    )
    return {
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": cfg.MODEL.SIZE_DIVISIBILITY,
        "training_seed": max(cfg.SEED, 0),
        "request": request,
        "max_objects": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def build_parts(cfg: CfgNode, num_evidence: int = 0) -> tuple[dict[str, Any], PixelDecoder, MaskDecoder]:
    """Return the keywords of `QuerySegmenter` but `head`, the pixel decoder, and the mask decoder."""
    names, things = model_classes(cfg)
    classes = len(names)
    backbone = build_backbone(cfg)
    fold_frozen_norms(backbone)
    parts = {
        **segmenter_settings(cfg),
        "backbone": backbone,
        "criterion": _build_criterion(cfg, classes),
        "things": [index in things for index in range(classes)],
        "num_queries": cfg.MODEL.MASK_DECODER.NUM_QUERIES,
        "top_k": cfg.TEST.DETECTIONS_PER_IMAGE,
        "resize_masks_first": cfg.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        "tracking": _build_tracking_branch(cfg),
    }
    mask_decoder = _build_mask_decoder(cfg, classes, num_evidence)
    return parts, _build_pixel_decoder(cfg, backbone.output_shape()), mask_decoder
