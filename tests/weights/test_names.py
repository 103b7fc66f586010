"""Checkpoints of earlier versions, with other names, load as if they had today's."""

import pytest
import torch
from detectron2.modeling import build_model

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


@pytest.mark.parametrize(
    "then, now",
    [
        ("mask_decoder.class_head.bias", "mask_decoder.class_embed.bias"),
        ("mask_decoder.mask_head.0.weight", "mask_decoder.mask_embed.0.weight"),
        ("mask_decoder.norm.bias", "mask_decoder.decoder_norm.bias"),
        ("mask_decoder.query_position", "mask_decoder.query_embed"),
        ("mask_decoder.level_embedding", "mask_decoder.level_embed"),
        (
            "mask_decoder.layers.0.cross_attention.attention.query.weight",
            "mask_decoder.layers.0.cross_attn.attention.q_proj.weight",
        ),
        (
            "mask_decoder.layers.2.self_attention.attention.output.bias",
            "mask_decoder.layers.2.self_attn.attention.out_proj.bias",
        ),
        ("mask_decoder.layers.1.feed_forward.expand.weight", "mask_decoder.layers.1.feed_forward.linear1.weight"),
        ("pixel_decoder.input_projections.0.0.bias", "pixel_decoder.input_proj.0.0.bias"),
        ("pixel_decoder.layers.0.attention.offsets.bias", "pixel_decoder.layers.0.attention.sampling_offsets.bias"),
        ("pixel_decoder.layers.0.attention.weights.bias", "pixel_decoder.layers.0.attention.attention_weights.bias"),
        ("pixel_decoder.layers.0.attention.value.bias", "pixel_decoder.layers.0.attention.value_proj.bias"),
        ("pixel_decoder.mask_projection.weight", "pixel_decoder.mask_features.weight"),
    ],
)
def test_the_table_has_the_names_that_were_written_then(then, now):
    assert rename(f"head.{then}", OLD_NAMES) == f"head.{now}"
