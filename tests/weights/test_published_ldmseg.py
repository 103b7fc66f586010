"""Files of the published LDMSeg and of Stable Diffusion: every name has its place, both ways."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch

from dformer.d2.checkpoint.zoo import config_of_checkpoint
from dformer.weights.checkpoint import read_checkpoint
from dformer.weights.published.convert import from_published, our_system, published_system, to_published
from dformer.weights.published.ldmseg import LDMSEG, MASK_AUTOENCODER, OLD_ATTENTION, joined, separated
from tests.d2.config.test_configs import load, on_meta

FILES = {
    "ae.pt": (MASK_AUTOENCODER, "coco/ldmseg/mask_autoencoder_60k.yaml"),
    "ldmseg.pt": (LDMSEG, "coco/ldmseg/ldmseg_sd_200k.yaml"),
}


def shapes(weights):
    return {name: tuple(x.shape) for name, x in weights.items()}


@pytest.fixture(scope="module")
def listed(golden_dir):
    content = json.loads((golden_dir / "checkpoint_keys_ldmseg.json").read_text())
    with torch.device("meta"):
        return {
            file: {
                part: {name: torch.empty(shape) for name, shape in names.items()}
                for part, names in content[file].items()
            }
            for file in FILES
        }


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_each_published_name_has_its_place(listed, file):
    system, config = FILES[file]
    published = joined({**listed[file], "ema": None, "step": 3})
    assert published_system(published) is system
    converted, dropped = from_published(published, system)
    assert our_system(converted) is system and system.configs(converted) == [config]
    assert shapes(converted) == shapes(on_meta(load(config)).state_dict())

    left_out = {name: published[name] for name in dropped}
    back = system.content(to_published(converted, left_out))
    assert {part: shapes(weights) for part, weights in back.items()} == {
        part: {name.removeprefix("module."): tuple(x.shape) for name, x in weights.items()}
        for part, weights in listed[file].items()
    }


@pytest.mark.golden
def test_old_names_of_attention(listed):
    published = joined(listed["ldmseg.pt"])
    old = dict(published)
    for name, new in OLD_ATTENTION.items():
        for kind in ("weight", "bias"):
            prefix = "vae_image.encoder.mid_block.attentions.0"
            old[f"{prefix}.{name}.{kind}"] = old.pop(f"{prefix}.{new}.{kind}")
    assert from_published(old, LDMSEG)[0].keys() == from_published(published, LDMSEG)[0].keys()


def tiny_file():
    """As `ae.pt` is: names of a parallel module, an optimizer, and a PQ that is a number of NumPy's."""
    weights = OrderedDict((f"module.{part}.0.weight", torch.rand(2, 2)) for part in ("encoder", "decoder"))
    return {"vae": weights, "optimizer": {"state": {}}, "PQ": np.float64(51.7), "epoch": 3, "ema": None}


def test_a_published_file_is_read_without_running_it(tmp_path):
    content = tiny_file()
    torch.save(content, tmp_path / "ae.pt")
    read = read_checkpoint(tmp_path / "ae.pt")
    assert read["model"].keys() == {"mask_autoencoder.encoder.0.weight", "mask_autoencoder.decoder.0.weight"}
    assert torch.equal(read["model"]["mask_autoencoder.encoder.0.weight"], content["vae"]["module.encoder.0.weight"])
    back = separated(to_published(read["model"]))
    assert back.keys() == {"vae"} and back["vae"].keys() == {"encoder.0.weight", "decoder.0.weight"}
    assert config_of_checkpoint(read, "ae.pt").MODEL.META_ARCHITECTURE == "MaskAutoencoder"
