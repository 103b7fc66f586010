"""Backbones pretrained on ImageNet, in the files that people have: weights arrive, and the features are the same."""

import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint, load_weights
from dformer.d2.config import get_cfg, merge_config
from dformer.utils.errors import UserError
from tests.d2.config.test_configs import CONFIGS


def model(backbone: str, *opts: str) -> nn.Module:
    """A backbone in its place, and something beside it."""
    cfg = get_cfg()
    merge_config(cfg, str(CONFIGS / "backbones" / f"{backbone}.yaml"), list(opts))
    head = nn.ModuleDict({"mask_decoder": nn.Linear(1, 1)})
    return nn.ModuleDict({"backbone": build_backbone(cfg), "head": head}).eval()


def load(model: nn.Module, path) -> None:
    load_weights(model, fetch_checkpoint(str(path)), str(path), trained=False)


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, x in network.state_dict().items():
        if x.is_floating_point():
            is_scale = name.endswith("running_var") or (x.ndim == 1 and name.endswith("weight"))
            x.copy_(torch.randn(x.shape, generator=generator) * 0.05 + is_scale)
    return network.eval()


def detectron2_names(weights: dict) -> dict:
    """As Detectron2's own tool writes them."""
    renamed = {}
    for name, x in weights.items():
        if "num_batches" in name:
            continue
        if "layer" not in name:
            name = f"stem.{name}"
        name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        renamed[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = x.numpy()
    return {"model": renamed, "__author__": "torchvision", "matching_heuristics": True}


@torch.no_grad()
@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_resnet(tmp_path, depth, kind):
    reference = randomised(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    if kind == "torchvision":
        torch.save(reference.state_dict(), path := tmp_path / "resnet.pth")
    else:
        (path := tmp_path / "R.pkl").write_bytes(pickle.dumps(detectron2_names(reference.state_dict())))
    ours = model(f"r{depth}")
    load(ours, path)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    maps = create_feature_extractor(reference, {f"layer{i}": f"res{i + 1}" for i in (1, 2, 3, 4)})(image)
    torch.testing.assert_close(ours["backbone"](image), maps, rtol=1e-4, atol=1e-4)


def test_resnet_of_detectron(tmp_path):
    """Its batch norms are a scale and a shift."""
    blobs = {"conv1_w": np.ones((64, 3, 7, 7), np.float32), "pred_w": np.ones((10, 2048), np.float32)}
    blobs |= {"res_conv1_bn_s": np.full(64, 2, np.float32), "res_conv1_bn_b": np.full(64, 3, np.float32)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs))
    weights = fetch_checkpoint(str(tmp_path / "R-50.pkl"))["model"]
    assert weights["stem.conv1.norm.weight"][0] == 2 and weights["stem.conv1.norm.bias"][0] == 3
    assert weights["stem.conv1.norm.running_mean"][0] == 0
    assert (weights["stem.conv1.norm.running_var"] + 1e-5).allclose(torch.ones(64))


def original_swin(weights: dict) -> dict:
    """timm's names -> the authors'."""
    renamed = {}
    for name, x in weights.items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        if parts[0] == "head":
            parts = ["head", parts[-1]]
        renamed[".".join(parts)] = x
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("kind", ["authors", "mask2former", "timm"])
def test_swin(tmp_path, kind, monkeypatch):
    create = timm.create_model
    reference = randomised(create("swin_tiny_patch4_window7_224"))
    weights = reference.state_dict()
    path = str(tmp_path / "swin_tiny_patch4_window7_224.pth")
    if kind == "authors":
        torch.save({"model": original_swin(weights)}, path)
    elif kind == "mask2former":
        arrays = {name: x.numpy() for name, x in original_swin(weights).items()}
        (tmp_path / "swin.pkl").write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
        path = str(tmp_path / "swin.pkl")
    else:
        path = "timm://swin_tiny_patch4_window7_224.ms_in1k"
        fetched = lambda name, pretrained=False, **options: reference if pretrained else create(name, **options)  # noqa: E731
        monkeypatch.setattr(timm, "create_model", fetched)
    ours = model("swin_tiny")
    load(ours, path)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    maps = ours["backbone"](image)
    expected_maps = reference.forward_intermediates(image, [0, 1, 2], intermediates_only=True)
    # In the last stage, where one window covers the map, the classifier does not shift it; the published backbones do.
    for key, expected in zip(("res2", "res3", "res4"), expected_maps, strict=True):
        normed = nn.functional.layer_norm(expected.permute(0, 2, 3, 1), expected.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(maps[key], normed, rtol=1e-4, atol=1e-4)


def test_a_swin_of_another_window_is_resized(tmp_path, caplog):
    weights = original_swin(timm.create_model("swin_tiny_patch4_window7_224").state_dict())
    tables = {name: torch.ones(23 * 23, x.shape[1]) for name, x in weights.items() if name.endswith("bias_table")}
    torch.save({"model": weights | tables}, tmp_path / "window12.pth")
    ours = model("swin_tiny")
    with caplog.at_level("INFO"):
        load(ours, tmp_path / "window12.pth")
    table = ours["backbone"].body.layers_0.blocks[0].attn.relative_position_bias_table
    assert table.shape == (169, 3) and torch.allclose(table, torch.ones(169, 3))
    assert "resized          12" in caplog.text and "windows of 12 -> 7" in caplog.text


def test_a_deeper_swin_is_not_cut_to_size(tmp_path):
    weights = timm.create_model("swin_small_patch4_window7_224").state_dict()
    torch.save({"model": original_swin(weights)}, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"small\.pth .*backbone\.body\.layers\.2\.blocks\.6"):
        load(model("swin_tiny"), tmp_path / "small.pth")


def test_other_timm_models(tmp_path):
    reference = randomised(timm.create_model("convnext_atto"))
    torch.save(reference.state_dict(), tmp_path / "convnext.pth")
    ours = model("swin_tiny", "MODEL.TIMM.NAME", "convnext_atto")
    load(ours, tmp_path / "convnext.pth")
    loaded = ours["backbone"].body.stages_1.blocks[0].conv_dw.weight
    assert torch.equal(loaded, reference.stages[1].blocks[0].conv_dw.weight)


def test_unknown_names_of_timm():
    with pytest.raises(UserError, match="MODEL.WEIGHTS .*swin_tyni.*swin_tiny_"):
        fetch_checkpoint("timm://swin_tyni_patch4_window7_224.ms_in1k")
