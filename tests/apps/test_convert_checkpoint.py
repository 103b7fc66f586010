"""Published checkpoints become ours and again what they were; a checkpoint brings its config along."""

import json
import pickle

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from dformer.apps.convert_checkpoint import convert
from dformer.d2.checkpoint.checkpointer import fetch_checkpoint, load_weights
from dformer.d2.checkpoint.zoo import config_of, config_of_checkpoint
from dformer.d2.data import model_classes
from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint
from dformer.weights.published.convert import from_published, our_system
from dformer.weights.published.dformer import DFORMER
from tests import run_script
from tests.d2.config.test_configs import load
from tests.d2.tiny import random_model, tiny_cfg


@pytest.fixture(scope="module")
def published(golden_dir) -> dict[str, torch.Tensor]:
    """Random; whole numbers where the published model has them."""
    models = json.loads((golden_dir / "checkpoint_keys_dformer.json").read_text())
    shapes = models["coco/panoptic-segmentation/swin/dformer_swin_tiny_bs16_50ep.yaml"]
    torch.manual_seed(0)
    return {n: torch.randint(99, shape) if n.endswith("index") else torch.rand(shape) for n, shape in shapes.items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.golden
def test_there_and_back(published, tmp_path, capsys, caplog):
    torch.save({"model": {f"module.{name}": x for name, x in published.items()}}, tmp_path / "published.pth")
    ours, back = tmp_path / "ours.pth", tmp_path / "back.pth"
    assert run_script("tools/convert_checkpoint.py", tmp_path / "published.pth", ours) == 0
    assert run_script("tools/convert_checkpoint.py", "--to", "published", ours, back) == 0
    assert same(torch.load(back, weights_only=True)["model"], published)
    account = capsys.readouterr().out
    assert "of a published DFormer, " in account and "12  the noise schedule is a setting" in account
    assert same(torch.load(ours, weights_only=True)["model"], from_published(published, DFORMER)[0])
    cfg = config_of(str(ours))
    names, things = model_classes(cfg)
    assert (len(names), len(things), cfg.DIFFUSION.MASK_STRIDE) == (133, 80, 1)
    assert cfg.MODEL.TIMM.NAME == "swin_tiny_patch4_window7_224"

    # and straight into the model
    cfg = load("coco/panoptic/swin/dformer_swin_tiny_50ep.yaml", "MODEL.WEIGHTS", str(tmp_path / "published.pth"))
    model = build_model(cfg)
    with caplog.at_level("INFO"):
        load_weights(model, fetch_checkpoint(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS)
    assert same(model.state_dict(), from_published(published, DFORMER)[0])
    assert "12  follows from the window size: backbone.layers.0.blocks.0.attn.relative_position_index" in caplog.text


@pytest.mark.golden
def test_other_files_of_the_same_weights(published, tmp_path):
    expected = from_published(published, DFORMER)[0]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {n: x.numpy() for n, x in published.items()}}))
    torch.save(published, tmp_path / "bare.pth")
    torch.save({"state_dict": published, "epoch": 3}, tmp_path / "other_wrapper.pth")
    torch.save({"ema_state": published}, tmp_path / "average_alone.pth")
    for name in ("a.pkl", "bare.pth", "other_wrapper.pth", "average_alone.pth"):
        assert same(read_checkpoint(tmp_path / name)["model"], expected), name
    torch.save({"model": {n: x * 0 for n, x in published.items()}, "model_ema": published}, tmp_path / "both.pth")
    assert same(read_checkpoint(tmp_path / "both.pth", averaged=True)["model"], expected)
    assert not read_checkpoint(tmp_path / "both.pth")["model"]["head.mask_decoder.query_embed"].any()
    with pytest.raises(UserError, match="bare.pth .*model_ema"):
        read_checkpoint(tmp_path / "bare.pth", averaged=True)


@pytest.mark.parametrize("backbone", ["r101", "swin_small", "swin_base", "swin_large_22k"])
def test_configs_of_larger_models(backbone):
    schedule = "100ep" if "large" in backbone else "50ep"
    folder = "coco/panoptic/swin" if "swin" in backbone else "coco/panoptic"
    name = f"{folder}/mask2former_{backbone}_{schedule}.yaml"
    cfg = load(name)
    with torch.device("meta"):
        weights = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
    assert our_system(weights).configs(weights) == [name]


def test_weights_that_fit_several_published_models_need_a_config():
    """ADE20K's semantic and panoptic models have the same 150 classes."""
    cfg = load("ade20k/panoptic/mask2former_r50_160k.yaml")
    with torch.device("meta"):
        weights = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
    with pytest.raises(UserError, match=r"ade20k\.pth.*--config-file .*ade20k/semantic/.*ade20k/panoptic/"):
        config_of_checkpoint({"model": weights}, "ade20k.pth")


def test_what_the_published_code_has_no_place_for(tmp_path):
    random_model(tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=r"backbone\.stages\.res2"):
        convert(str(tmp_path / "tiny.pth"), str(tmp_path / "out.pth"), to="published")
    assert not (tmp_path / "out.pth").exists()


def test_what_cannot_be_converted(tmp_path):
    for file, key in (("resnet.pth", "conv1.weight"), ("unknown.pth", "head.mask_decoder.decoder_norm.weight")):
        torch.save({key: torch.zeros(64, 3, 7, 7)}, tmp_path / file)
        with pytest.raises(UserError, match=f"{file}.*--config-file"):
            convert(str(tmp_path / file), str(tmp_path / "out.pth"))
    with pytest.raises(UserError, match="out.pkl"):
        convert(str(tmp_path / "resnet.pth"), str(tmp_path / "out.pkl"))


def test_classes_of_a_checkpoint_need_no_data_set(tmp_path):
    cfg = tiny_cfg()
    cfg.MODEL.CLASSES, cfg.MODEL.THINGS, cfg.DATASETS.TRAIN = ["cat", "lawn"], [0], ("never_registered",)
    assert model_classes(cfg) == (["cat", "lawn"], (0,))
    assert build_model(cfg).things.tolist() == [True, False]
    cfg.MODEL.NUM_CLASSES = 5
    with pytest.raises(UserError, match="MODEL.NUM_CLASSES"):
        build_model(cfg)


def test_a_config_of_another_version_is_an_error(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "config": "MODEL:\n  NO_SUCH_KEY: 1\n"}, tmp_path / "later.pth")
    with pytest.raises(UserError, match=r"later\.pth .*NO_SUCH_KEY"):
        config_of(str(tmp_path / "later.pth"))


def test_half_the_size(tmp_path):
    random_model(tmp_path / "whole.pth")
    whole = read_checkpoint(tmp_path / "whole.pth")["model"]
    convert(str(tmp_path / "whole.pth"), str(tmp_path / "half.safetensors"), half=True)
    half = fetch_checkpoint(str(tmp_path / "half.safetensors"))
    assert {x.dtype for x in half["model"].values() if x.ndim > 1} == {torch.float16}
    assert {x.dtype for x in half["model"].values() if x.ndim < 2} == {torch.float32}
    cfg = config_of(str(tmp_path / "half.safetensors"))
    assert cfg.MODEL.BACKBONE.NAME == "TinyBackbone" and cfg.MODEL.NUM_CLASSES == tiny_cfg().MODEL.NUM_CLASSES
    other = build_model(cfg)
    load_weights(other, half, "half.safetensors")
    for name, x in other.state_dict().items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, whole[name], rtol=1e-3, atol=1e-6)
