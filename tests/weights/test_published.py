"""Published weights, renamed, give the published outputs; and every name of the published models has its place."""

import json

import pytest
import timm
import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file

from dformer.d2.modeling.backbones import TimmBackbone
from dformer.models.dformer import DFormerHead, MaskDiffusion
from dformer.models.mask2former import Mask2FormerHead
from dformer.models.mask_decoder import MaskDecoder
from dformer.models.pixel_decoder import MSDeformAttnPixelDecoder
from dformer.signals.masks import to_signal
from dformer.weights.published.convert import from_published, our_system, published_system, to_published
from dformer.weights.published.dformer import DFORMER
from dformer.weights.published.mask2former import MASK2FORMER
from tests.d2.config.test_configs import load

pytestmark = pytest.mark.golden
SYSTEMS = {"dformer": DFORMER, "mask2former": MASK2FORMER}


def published_weights(golden, prefix):
    """Those of a reference file, under the names that they have in a whole model."""
    start = "state_dict."
    return {prefix + name[len(start) :]: x.float() for name, x in golden.items() if name.startswith(start)}


def strip(weights, prefix):
    assert all(name.startswith(prefix) for name in weights)
    return {name[len(prefix) :]: x for name, x in weights.items()}


@pytest.mark.parametrize("system", ["dformer", "mask2former"])
def test_heads(golden_dir, system):
    golden = load_file(golden_dir / f"{system}_head.safetensors")
    published = published_weights(golden, "sem_seg_head.")
    assert published_system(published) is SYSTEMS[system] and our_system(published) is None
    converted, dropped = from_published(published, SYSTEMS[system])
    assert not dropped and our_system(converted) is SYSTEMS[system] and published_system(converted) is None
    weights = strip(converted, "head.")
    features = [golden[f"features.res{i}"] for i in (2, 3, 4, 5)]
    dim = 256 if system == "dformer" else 32
    shared = {"mask_dim": dim, "num_heads": 8}
    encoder = {"conv_dim": 32, "num_layers": 2, "num_points": 4, "ffn_dim": 1024}
    pixel_decoder = MSDeformAttnPixelDecoder(in_channels=(16, 24, 32, 40), **encoder, **shared)
    decoder = {"num_classes": 7, "num_queries": 12, "hidden_dim": dim, "num_layers": 4, "ffn_dim": 64}
    mask_decoder = MaskDecoder(in_channels=32, **decoder, **shared)
    if system == "dformer":
        diffusion = MaskDiffusion.create("cosine", 1000, 0.1, "binary", 1)
        head = DFormerHead(pixel_decoder=pixel_decoder, mask_decoder=mask_decoder, diffusion=diffusion)
        inputs = (features, to_signal(golden["noisy_masks"], diffusion.scale), golden["timesteps"])
    else:
        head = Mask2FormerHead(pixel_decoder=pixel_decoder, mask_decoder=mask_decoder)
        inputs = (features,)
    head.load_state_dict(weights)  # every parameter, and nothing else

    with torch.no_grad():
        predictions = head(*inputs)
        pixel_features = head.pixel_decoder(features)
    names = [f"output.aux.{i}" for i in range(len(predictions) - 1)] + ["output"]
    assert f"output.aux.{len(predictions) - 1}.pred_logits" not in golden
    for name, prediction in zip(names, predictions, strict=True):
        torch.testing.assert_close(prediction.logits, golden[f"{name}.pred_logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(prediction.masks, golden[f"{name}.pred_masks"], rtol=0, atol=1e-4)
    if system == "dformer":
        expected = golden["pixel_decoder.mask_features"]
        torch.testing.assert_close(pixel_features.mask_features, expected, rtol=0, atol=1e-4)
        for i, level in enumerate(pixel_features.multi_scale_features):
            torch.testing.assert_close(level, golden[f"pixel_decoder.multi_scale.{i}"], rtol=0, atol=1e-4)


def test_swin(golden_dir, monkeypatch):
    golden = load_file(golden_dir / "swin.safetensors")
    create = timm.create_model
    small = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 4, 8)}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **small))
    backbone = TimmBackbone(name="swin_tiny_patch4_window7_224", drop_path_rate=0.0).eval()
    converted, dropped = from_published(published_weights(golden, "backbone."), MASK2FORMER)
    assert set(dropped.values()) == {"follows from the window size"}
    backbone.load_state_dict(strip(converted, "backbone."))
    with torch.no_grad():
        maps = backbone(golden["image"])
    for key, x in maps.items():
        torch.testing.assert_close(x, golden[f"output.{key}"], rtol=0, atol=1e-4)


OURS = {
    "coco/panoptic-segmentation": "coco/panoptic/{}_50ep.yaml",
    "coco/instance-segmentation": "coco/instance/{}_50ep.yaml",
    "ade20k/semantic-segmentation": "ade20k/semantic/{}_160k.yaml",
}


@pytest.mark.parametrize("system", ["dformer", "mask2former"])
def test_every_name_of_the_published_models(golden_dir, system, monkeypatch):
    """Each fills all parameters of the model of our config of that name, in the same shapes, and finds that config."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: self)
    for config, shapes in json.loads((golden_dir / f"checkpoint_keys_{system}.json").read_text()).items():
        published = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        converted, _ = from_published(published, SYSTEMS[system])
        name = OURS["/".join(config.split("/")[:2])].format(
            f"swin/{system}_swin_tiny" if "swin" in config else f"{system}_r50"
        )
        assert name in our_system(converted).configs(converted)
        with torch.device("meta"):
            model = build_model(load(name))
        expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        assert {name: tuple(x.shape) for name, x in converted.items()} == expected, config


@pytest.mark.parametrize("system", ["dformer", "mask2former"])
def test_there_and_back(golden_dir, system):
    """Every published model comes back bit by bit; and with all its names and shapes where nothing was kept aside."""
    for config, shapes in json.loads((golden_dir / f"checkpoint_keys_{system}.json").read_text()).items():
        published = {name: torch.randint(2**15, shape, dtype=torch.int16) for name, shape in shapes.items()}
        converted, dropped = from_published(published, SYSTEMS[system])
        back = to_published(converted, {name: published[name] for name in dropped})
        assert back.keys() == published.keys(), config
        assert all(torch.equal(back[name], x) for name, x in published.items()), config
        assert {name: list(x.shape) for name, x in to_published(converted).items()} == shapes, config
