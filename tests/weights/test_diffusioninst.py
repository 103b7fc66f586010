"""Every name of the published DiffusionInst has its place, both ways."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from dformer.weights.published.convert import from_published, our_system, published_system, to_published
from dformer.weights.published.diffusioninst import DIFFUSIONINST
from tests.d2.config.test_configs import load

pytestmark = pytest.mark.golden

OURS = {  # with million parameters
    "diffinst.coco.res50.yaml": ("coco/instance/diffusioninst_r50_5x.yaml", 112.4),
    "diffinst.coco.res101.yaml": ("coco/instance/diffusioninst_r101_5x.yaml", 131.3),
    "diffinst.coco.swinbase.yaml": ("coco/instance/swin/diffusioninst_swin_base_w7_22k_5x.yaml", 175.2),
    "diffinst.lvis.res50.yaml": ("lvis/instance/diffusioninst_r50_3x.yaml", 114.1),
}


@pytest.fixture(scope="module")
def shapes(golden_dir):
    return json.loads((golden_dir / "checkpoint_keys_diffusioninst.json").read_text())


@pytest.mark.parametrize("config", OURS)
def test_published_models_fill_ours(shapes, config, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: self)
    published = {name: torch.empty(shape, device="meta") for name, shape in shapes[config].items()}
    assert published_system(published) is DIFFUSIONINST and our_system(published) is None
    converted, _ = from_published(published, DIFFUSIONINST)
    assert our_system(converted) is DIFFUSIONINST and published_system(converted) is None
    name, millions = OURS[config]
    assert DIFFUSIONINST.configs(converted) == [name]
    with torch.device("meta"):
        model = build_model(load(name))
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert {name: tuple(x.shape) for name, x in converted.items()} == expected
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.051)


@pytest.mark.parametrize("config", OURS)
def test_there_and_back(shapes, config):
    """Merged tensors are random, the others hold a number of their own."""
    published = {
        name: torch.rand(shape) if "in_proj" in name else torch.tensor(float(k)).expand(shape)
        for k, (name, shape) in enumerate(shapes[config].items())
    }
    converted, dropped = from_published(published, DIFFUSIONINST)
    back = to_published(converted, {name: published[name] for name in dropped})
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], x) for name, x in published.items())
    assert {name: list(x.shape) for name, x in to_published(converted).items()} == shapes[config]
