"""Plain vision transformers of timm as backbones, through a simple feature pyramid (ViTDet, Li et al. 2022, Sec. 3).

Shapes: B images of H x W, D channels of the transformer, C of the pyramid, a map of stride 16 from its last block.
"""

import re
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from dformer.d2.modeling.backbones import STRIDES, known_model, out_features
from dformer.utils.errors import UserError

PATCH = 16  # pixels a cell, whatever the pretrained model has


class SimpleFeaturePyramid(nn.Module):
    """Make maps of strides 4, 8, 16, 32 from one of stride 16, each by itself (ViTDet, Sec. 3)."""

    def __init__(self, in_dim: int, dim: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleDict({str(stride): _level(in_dim, dim, stride) for stride in strides})

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Return maps (B, C, ceil(h * 16 / stride), ...) by stride, of a map (B, D, h, w)."""
        return {int(stride): level(x) for stride, level in self.levels.items()}


def _level(in_dim: int, dim: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    match stride:
        case 4:
            layers = [nn.ConvTranspose2d(in_dim, in_dim // 2, 2, stride=2), LayerNorm2d(in_dim // 2), nn.GELU()]
            layers.append(nn.ConvTranspose2d(in_dim // 2, in_dim // 4, 2, stride=2))
            in_dim //= 4
        case 8:
            layers = [nn.ConvTranspose2d(in_dim, in_dim // 2, 2, stride=2)]
            in_dim //= 2
        case 32:
            layers = [nn.MaxPool2d(2, ceil_mode=True)]
    layers += [nn.Conv2d(in_dim, dim, 1, bias=False), LayerNorm2d(dim)]
    return nn.Sequential(*layers, nn.Conv2d(dim, dim, 3, padding=1, bias=False), LayerNorm2d(dim))


class ViTBackbone(Backbone):
    """Wrap a plain vision transformer of timm's, and return the maps of a `SimpleFeaturePyramid`.

    Patches have 16 pixels, and weights for others are resampled when they are loaded (FlexiViT, Beyer et al. 2023), so
    that all strides are as usual. Position embeddings are interpolated to each image's size.

    Args:
        name: of the model, such as "vit_base_patch14_dinov2".
        dim: C.
        frozen: the transformer is not trained, only the pyramid.
    """

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        drop_path_rate: float = 0.0,
        frozen: bool = False,
        out_features: Sequence[str] = tuple(STRIDES),
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            pretrained = timm.create_model(known_model(name), num_classes=0)
        if not hasattr(pretrained, "blocks") or not hasattr(pretrained, "patch_embed"):
            raise UserError(
                f"MODEL.TIMM.NAME: {name} is not a plain vision transformer; use build_timm_backbone for it"
            )
        # Position embeddings keep the pretrained model's grid, whatever its patches.
        size = tuple(PATCH * cells for cells in pretrained.patch_embed.grid_size)
        self.body = timm.create_model(
            name,
            num_classes=0,
            global_pool="",
            patch_size=PATCH,
            img_size=size,
            dynamic_img_size=True,
            drop_path_rate=drop_path_rate,
        )
        self.frozen = frozen
        self.body.requires_grad_(not frozen)
        self.strides = {key: STRIDES[key] for key in out_features}
        self.dim = dim
        self.pyramid = SimpleFeaturePyramid(self.body.embed_dim, dim, list(self.strides.values()))

    def train(self, mode: bool = True) -> "ViTBackbone":
        """Set the mode; a frozen transformer stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return {key: ShapeSpec(channels=self.dim, stride=stride) for key, stride in self.strides.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return `res2` .. `res5`, each (B, C, H' / stride, W' / stride), of images (B, 3, H, W).

        H' and W' are H and W, rounded up to multiples of 16.
        """
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % PATCH, 0, -height % PATCH))
        (x,) = self.body.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)  # (B, D, h, w)
        maps = self.pyramid(x)
        return {key: maps[stride] for key, stride in self.strides.items()}

    def layers_above(self, name: str) -> int:
        """Return how many layers come after that of a parameter, for layer-wise decay of the learning rate.

        As in BEiT (Bao et al. 2021) a block is a layer, and so is all that comes before the blocks.
        """
        blocks = len(self.body.blocks)
        if block := re.match(r"body\.blocks\.(\d+)\.", name):
            return blocks - int(block[1])
        return 0 if re.match(r"(pyramid|body\.norm)\.", name) else blocks + 1


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTBackbone:
    """Return the plain vision transformer named by MODEL.TIMM with its pyramid, for images of three channels."""
    node = cfg.MODEL.TIMM
    return ViTBackbone(
        name=node.NAME,
        dim=node.PYRAMID_DIM,
        drop_path_rate=node.DROP_PATH_RATE,
        frozen=node.FROZEN,
        out_features=out_features(cfg),
    )
