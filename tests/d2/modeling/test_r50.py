"""The COCO panoptic DFormer with ResNet-50, as configured, runs whole on the CPU."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from dformer.d2.config import get_cfg, merge_config
from dformer.losses.criterion import MaskProducts
from dformer.losses.matcher import matching_cost
from dformer.losses.points import sample_targets
from tests import ROOT
from tests.d2.tiny import tiny_batch

SIZE = 256


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_costs_in_mixed_precision_are_those_in_float32(dtype):
    """Of one set of predictions at the published 12,544 points, with large mask logits and an object over 70 %."""
    cfg = get_cfg()
    merge_config(cfg, str(ROOT / "configs/coco/panoptic/dformer_r50_50ep.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model, (item,) = build_model(cfg).train(), tiny_batch((10,), 256)
    item["instances"].gt_masks[0, :180] = True
    with torch.autocast("cpu", dtype):
        images, generators = model.preprocess([item]), [torch.Generator().manual_seed(0)]
        targets = [model.target(item["instances"], images.tensor.shape[-2:])]
        (predictions,), _ = model.training_predictions(model.features(images.tensor), targets, generators)
    embed = torch.stack([12 * prediction.mask_embed for prediction in predictions])
    assert embed.dtype == dtype and model.criterion.num_points == 12544
    points, labels = torch.rand(12544, 2), targets[0].labels
    truth = sample_targets(targets[0].masks, torch.arange(10), points.expand(10, -1, -1))
    pixels = predictions[0].mask_features.permute(0, 2, 3, 1).unbind()
    logits = torch.stack([prediction.logits for prediction in predictions])

    def costs(mask_embed, pixels) -> Tensor:
        masks = MaskProducts(mask_embed, pixels).at_points(0, points)
        return matching_cost(logits[:, 0].float(), masks, labels, truth, model.criterion.weights)

    expected = costs(embed.float(), tuple(x.float() for x in pixels))
    assert expected.isfinite().all() and expected.std() > 0.1
    torch.testing.assert_close(costs(embed, pixels), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", dtype):
        losses = model.criterion(logits, MaskProducts(embed, pixels), targets, generators)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
)
def test_a_training_step_and_inference(dtype):
    cfg = get_cfg()
    merge_config(cfg, str(ROOT / "configs/coco/panoptic/dformer_r50_50ep.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = model(tiny_batch((10,), SIZE))
    sum(losses.values()).backward()
    optimizer.step()
    assert len(losses) == 27  # three for each of nine layers
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    for steps in (1, 4):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            *_, last = model.eval().steps(tiny_batch((10,), SIZE), replace(model.request, steps=steps))
        (result,) = last.results
        assert result["sem_seg"].shape == (133, SIZE, SIZE) and result["sem_seg"].isfinite().all()
        assert result["panoptic_seg"][0].shape == (SIZE, SIZE)
        assert result["instances"].pred_masks.shape[1:] == (SIZE, SIZE)
