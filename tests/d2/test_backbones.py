"""timm models as backbones: strides, any input size, and clear errors."""

import pytest
import torch

from dformer.d2.backbones import TimmBackbone
from dformer.errors import UserError


def backbone(name):
    with torch.device("meta") if "large" in name or "base" in name else torch.device("cpu"):
        return TimmBackbone(name=name, drop_path_rate=0.0).eval()


@pytest.mark.parametrize(
    ("name", "channels", "millions"),
    [
        ("swin_tiny_patch4_window7_224", 96, 27.5),
        ("swin_small_patch4_window7_224", 96, 48.8),
        ("swin_base_patch4_window12_384", 128, 86.9),
        ("swin_large_patch4_window12_384", 192, 195.2),
    ],
)
def test_swin_sizes(name, channels, millions):
    model = backbone(name)
    assert [shape.channels for shape in model.output_shape().values()] == [channels * 2**i for i in range(4)]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (100, 132)])
def test_maps_of_any_input_size(name, size):
    model = backbone(name)
    with torch.no_grad():
        maps = model(torch.rand(1, 3, *size))
    for key, shape in model.output_shape().items():
        if name != "convnext_atto":  # whose strided convolutions drop an incomplete cell
            assert maps[key].shape == (1, shape.channels, *(-(-side // shape.stride) for side in size))
        assert maps[key].shape[:2] == (1, shape.channels) and maps[key].isfinite().all()


def test_unknown_and_unfit_models_are_told():
    with pytest.raises(UserError, match='no model "swin_tyni.*did you mean "swin_tiny'):
        backbone("swin_tyni_patch4_window7_224")
    with pytest.raises(UserError, match="vit_tiny_patch16_224 has features of strides"):
        backbone("vit_tiny_patch16_224")
