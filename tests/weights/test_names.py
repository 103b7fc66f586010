"""Checkpoints of earlier versions, with other names, load as if they had today's."""

import pytest
import torch
from detectron2.modeling import build_model
from safetensors import safe_open

from dformer.d2.checkpoint.checkpointer import ASSETS
from dformer.weights.checkpoint import read_checkpoint
from dformer.weights.names import OLD_NAMES, rename
from tests.d2.tiny import tiny_cfg


def with_old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename as an earlier version named them."""
    backwards = [(new, old) for old, new in OLD_NAMES]
    return {rename(name, backwards) or name: x for name, x in weights.items()}


@pytest.mark.parametrize("system", ["DFormer", "Mask2Former"])
@pytest.mark.parametrize("pixel_decoder", ["MSDeformAttnPixelDecoder", "FPNPixelDecoder"])
def test_an_old_checkpoint_loads(system, pixel_decoder, tmp_path):
    cfg = tiny_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PIXEL_DECODER.NAME = system, pixel_decoder
    weights = build_model(cfg).state_dict()
    average = {name: x + 1 if x.is_floating_point() else x for name, x in weights.items()}
    old = with_old_names(weights)
    assert len(old.keys() - weights.keys()) > 30
    torch.save({"model": old, "model_ema": with_old_names(average), "iteration": 3}, tmp_path / "old.pth")
    for averaged, expected in ((False, weights), (True, average)):
        read = read_checkpoint(tmp_path / "old.pth", averaged)["model"]
        assert list(read) == list(expected) and all(torch.equal(read[name], x) for name, x in expected.items())
    assert list(read_checkpoint(tmp_path / "old.pth")["model_ema"]) == list(average)
    torch.save({"model": old, "ema": {0: 1}}, tmp_path / "other.pth")
    assert read_checkpoint(tmp_path / "other.pth")["ema"] == {0: 1}


def test_the_table_has_the_names_of_a_file_that_was_written_then():
    with safe_open(ASSETS / "shapes.safetensors", "pt") as file:
        old = set(file.keys())
    new = set(read_checkpoint(ASSETS / "shapes.safetensors")["model"])
    assert old - new and set(with_old_names(dict.fromkeys(new))) == old
