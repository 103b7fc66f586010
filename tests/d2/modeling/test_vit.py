"""Plain vision transformers as backbones: maps of any input size, a training step, weights of timm, learning rates."""

import pytest
import timm
import torch
from detectron2.modeling import build_model

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint, load_weights
from dformer.d2.engine.optimizer import parameter_groups
from dformer.d2.modeling.vit import PATCH, ViTBackbone
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_batch, tiny_cfg

NAME = "vit_tiny_patch16_224"
OPTS = ["MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.TIMM.NAME", NAME, "MODEL.TIMM.PYRAMID_DIM", "32"]
FAMILIES = [
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_224",  # of MAE's weights, too
]


def check_maps(name: str) -> None:
    model = ViTBackbone(name=name, dim=32).eval()
    for height, width in ((64, 64), (96, 160), (100, 132)):
        with torch.no_grad():
            maps = model(torch.rand(1, 3, height, width))
        cells = -(-height // PATCH), -(-width // PATCH)
        for key, shape in model.output_shape().items():
            expected = tuple(-(-side * PATCH // shape.stride) for side in cells)
            assert maps[key].shape == (1, shape.channels, *expected) and maps[key].isfinite().all()


def test_maps_of_any_input_size():
    check_maps(NAME)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_of_every_family(name):
    check_maps(name)


@pytest.mark.parametrize("frozen", [False, True])
def test_training_step(frozen):
    torch.manual_seed(0)
    model = build_model(tiny_cfg("Mask2Former", [*OPTS, "MODEL.TIMM.FROZEN", str(frozen)])).train()
    assert model.backbone.body.training is not frozen
    sum(model.losses(tiny_batch((2, 1))).values()).backward()
    grads = {name: x.grad is not None and bool(x.grad.any()) for name, x in model.backbone.named_parameters()}
    assert all(found for name, found in grads.items() if name.startswith("pyramid."))
    assert grads["body.pos_embed"] is grads["body.blocks.0.attn.qkv.weight"] is not frozen


@pytest.mark.parametrize("name", [NAME, pytest.param("vit_small_patch14_dinov2", marks=pytest.mark.slow)])
def test_weights_of_timm(tmp_path, name):
    """A file with timm's names, head and patches, as timm://... gives them."""
    torch.manual_seed(1)
    pretrained = timm.create_model(name)
    torch.save(pretrained.state_dict(), tmp_path / "vit.pth")
    model = build_model(tiny_cfg("Mask2Former", [*OPTS, "MODEL.TIMM.NAME", name]))
    load_weights(model, fetch_checkpoint(str(tmp_path / "vit.pth")), "vit.pth", trained=False)
    ours, theirs = model.backbone.body.state_dict(), pretrained.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "patch_embed.proj.weight" not in key)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 7, 7), 56, mode="bicubic")  # smooth
    side = pretrained.patch_embed.patch_size[0]
    resized = torch.nn.functional.interpolate(image, 56 * side // PATCH, mode="bicubic")[..., : 3 * side, : 3 * side]
    with torch.no_grad():
        expected = pretrained.patch_embed.proj(resized)
        found = model.backbone.body.patch_embed.proj(image[..., : 3 * PATCH, : 3 * PATCH])
    assert (found - expected).abs().mean() < 0.1 * expected.std()


def test_learning_rates_decay_by_layer():
    cfg = tiny_cfg("Mask2Former", [*OPTS, "SOLVER.LAYER_DECAY", "0.5", "SOLVER.BACKBONE_MULTIPLIER", "0.1"])
    groups = parameter_groups(cfg, build_model(cfg))
    rates = {name: group["lr"] / cfg.SOLVER.BASE_LR for group in groups for name, _ in group["params"]}
    body = "backbone.body"
    expected = {f"{body}.blocks.{i}.mlp.fc1.weight": 0.1 * 0.5 ** (12 - i) for i in (0, 5, 11)}
    expected |= dict.fromkeys((f"{body}.pos_embed", f"{body}.patch_embed.proj.weight"), 0.1 * 0.5**13)
    expected |= dict.fromkeys((f"{body}.norm.weight", "backbone.pyramid.levels.4.0.weight"), 0.1)
    expected["head.query_feat"] = 1.0
    assert {name: rates[name] for name in expected} == pytest.approx(expected)


def test_other_backbones_have_no_layers_to_decay():
    cfg = tiny_cfg("Mask2Former", ["SOLVER.LAYER_DECAY", "0.5"])
    with pytest.raises(UserError, match="LAYER_DECAY"):
        parameter_groups(cfg, build_model(cfg))


def test_a_model_that_is_no_plain_vit_is_told():
    with pytest.raises(UserError, match="resnet18"):
        ViTBackbone(name="resnet18", dim=32)
