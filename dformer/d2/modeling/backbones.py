"""timm models as Detectron2 backbones, and Detectron2's own ResNets ("build_resnet_backbone") made faster."""

from collections.abc import Callable, Sequence
from functools import partial

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BasicStem
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from dformer.utils.errors import UserError, did_you_mean

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(Backbone):
    """Wrap a timm model with `features_only`, which returns maps `res2` .. `res5` of strides 4, 8, 16, 32, or the first
    of these.

    Swin and similar models return maps (B, H, W, C) without a norm; these get a LayerNorm each, as the published Swin
    backbones have. Swin's windows are padded, never shrunk, as published, and images to sides that 4 divides.
    """

    def __init__(self, *, name: str, drop_path_rate: float, out_features: Sequence[str] = tuple(STRIDES)) -> None:
        super().__init__()
        known_model(name)
        any_size = {"strict_img_size": False, "always_partition": True} if name.startswith("swin") else {}
        self.patch = 4 if any_size else 1  # pixels a cell
        options = {"features_only": True, "drop_path_rate": drop_path_rate, **any_size}
        self.body = timm.create_model(name, **options)
        self.strides = {key: STRIDES[key] for key in out_features}
        strides = self.body.feature_info.reduction()
        needed = [i for i, stride in enumerate(strides) if stride <= max(self.strides.values())]
        if len(needed) < len(strides):
            self.body = timm.create_model(name, out_indices=needed, **options)
        for block in self.body.modules():
            if isinstance(block, SwinTransformerBlock):
                block._attn = partial(_attend_padded, block._attn, block.window_size)
        strides, channels = self.body.feature_info.reduction(), self.body.feature_info.channels()
        missing = sorted(set(self.strides.values()) - set(strides))
        if missing:
            raise UserError(f"MODEL.TIMM.NAME: {name} has features of strides {strides}, but {missing} are needed too")
        self.index = {key: len(strides) - 1 - strides[::-1].index(stride) for key, stride in self.strides.items()}
        self.channels = {key: channels[index] for key, index in self.index.items()}
        self.channels_last = self.body.output_fmt == "NHWC"
        normed = self.channels if self.channels_last else {}
        self.norms = nn.ModuleDict({key: nn.LayerNorm(channels) for key, channels in normed.items()})

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return {key: ShapeSpec(channels=self.channels[key], stride=stride) for key, stride in self.strides.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return `res2` .. `res5`, each (B, C_i, ceil(H / stride), ceil(W / stride)), of images (B, 3, H, W)."""
        height, width = image.shape[2:]
        if height % self.patch or width % self.patch:
            image = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        maps = self.body(image)
        features = {key: maps[index] for key, index in self.index.items()}
        if not self.channels_last:
            return features
        return {key: self.norms[key](x).permute(0, 3, 1, 2) for key, x in features.items()}


def _attend_padded(attend: Callable[[Tensor], Tensor], window: tuple[int, int], x: Tensor) -> Tensor:
    """Apply windowed attention to a map (B, H, W, C), padded with zeros to whole windows first, as published.

    timm shifts the windows before it pads, which gives other numbers wherever a side does not divide by the window.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    return attend(x)[:, :height, :width]


class FoldedConv2d(Conv2d):
    """Run a convolution and the frozen batch norm after it as one convolution, with the parameters of both."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the two return one after the other."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        geometry = self.stride, self.padding, self.dilation, self.groups
        if self.weight.numel() < x.numel():
            x = F.conv2d(x, self.weight * scale[:, None, None, None], shift, *geometry)
        else:  # scaled weights are kept for the backward pass: here the map is smaller
            x = F.conv2d(x, self.weight, None, *geometry)
            x = torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(backbone: Backbone) -> None:
    """Let frozen batch norms cost nothing: they would be two passes over each map, and three in training."""
    for module in backbone.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d) and module.bias is None:
            module.__class__ = FoldedConv2d


class SamePooledStem(BasicStem):
    """Pool as TensorFlow's "SAME" does, which pads even sides at their end: the stem of ResNets from there."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C, H / 4, W / 4) of images (B, 3, H, W)."""
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), kernel_size=3, stride=2)


@BACKBONE_REGISTRY.register()
def build_tensorflow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Return Detectron2's ResNet, whose max pooling pads as in TensorFlow."""
    backbone = build_resnet_backbone(cfg, input_shape)
    backbone.stem.__class__ = SamePooledStem
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Return the backbone named by MODEL.TIMM, for images of three channels."""
    node = cfg.MODEL.TIMM
    if node.FROZEN:
        raise UserError('MODEL.TIMM.FROZEN is for MODEL.BACKBONE.NAME "build_timm_vit_backbone"; set it to False')
    return TimmBackbone(name=node.NAME, drop_path_rate=node.DROP_PATH_RATE, out_features=out_features(cfg))


def known_model(name: str) -> str:
    """Return the name of a timm model; a `UserError` if timm has none."""
    if not timm.is_model(name):
        raise UserError(f'MODEL.TIMM.NAME: timm has no model "{name}"{did_you_mean(name, timm.list_models())}')
    return name


def out_features(cfg: CfgNode) -> tuple[str, ...]:
    """Return MODEL.TIMM.OUT_FEATURES; a `UserError` if one is no map of a backbone."""
    for key in cfg.MODEL.TIMM.OUT_FEATURES:
        if key not in STRIDES:
            raise UserError(f'MODEL.TIMM.OUT_FEATURES: "{key}" is none of {", ".join(STRIDES)}')
    return tuple(cfg.MODEL.TIMM.OUT_FEATURES)
