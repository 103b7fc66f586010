"""timm models as backbones: strides, any input size, and clear errors."""

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint, load_weights
from dformer.d2.config import get_cfg
from dformer.d2.modeling.backbones import FoldedConv2d, TimmBackbone, fold_frozen_norms
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_cfg


def backbone(name):
    return TimmBackbone(name=name, drop_path_rate=0.0).eval()


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "swinv2_tiny_window8_256"])
def test_weights_of_timm(tmp_path, name):
    """A file with timm's names and head, as timm://... gives them."""
    torch.manual_seed(1)
    pretrained = timm.create_model(name)
    torch.save(pretrained.state_dict(), tmp_path / "weights.pth")
    options = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name]
    model = build_model(tiny_cfg("Mask2Former", options))
    load_weights(model, fetch_checkpoint(str(tmp_path / "weights.pth")), "weights.pth", trained=False)
    theirs = {key.replace(".", "_"): x for key, x in pretrained.state_dict().items()}
    ours = {key.replace(".", "_"): x for key, x in model.backbone.body.state_dict().items()}
    assert ours and all(torch.equal(x, theirs[key]) for key, x in ours.items())


def test_swin_pads_images_to_whole_patches():
    """As the published one."""
    model, image = backbone("swin_tiny_patch4_window7_224"), torch.rand(1, 3, 97, 130)
    with torch.no_grad():
        maps, padded = model(image), model(F.pad(image, (0, 2, 0, 3)))
    assert maps["res2"].shape[2:] == (25, 33) and all(torch.equal(maps[key], padded[key]) for key in padded)


def test_unknown_and_unfit_models_are_told():
    with pytest.raises(UserError, match='no model "swin_tyni.*did you mean "swin_tiny'):
        backbone("swin_tyni_patch4_window7_224")
    with pytest.raises(UserError, match="vit_tiny_patch16_224 has features of strides"):
        backbone("vit_tiny_patch16_224")


def test_folded_norms_change_nothing():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res2", "res5"], "MODEL.RESNETS.NORM", "FrozenBN"])
    torch.manual_seed(0)
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    for name, buffer in backbone.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5 * name.endswith("var"))
    names, image = list(backbone.state_dict()), torch.rand(2, 3, 64, 64)

    def run():
        maps = backbone(image)
        maps = {key: x / x.detach().std() for key, x in maps.items()}
        weight = backbone.res3[0].conv2.weight
        (gradient,) = torch.autograd.grad(maps["res5"].square().mean(), weight)
        return [*maps.values(), gradient / gradient.std()]

    plain = run()
    fold_frozen_norms(backbone)  # res2 has larger maps than weights, res5 the other way round
    assert list(backbone.state_dict()) == names
    assert isinstance(backbone.res3[0].conv2, FoldedConv2d) and isinstance(backbone.stem.conv1, FoldedConv2d)
    for a, b in zip(run(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_folded_norms_compile():
    model = nn.Sequential(Conv2d(3, 8, 3, bias=False, norm=FrozenBatchNorm2d(8)))
    fold_frozen_norms(model)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model)(x), model(x), atol=1e-5)
