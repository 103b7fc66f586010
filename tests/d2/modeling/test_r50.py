"""The COCO panoptic DFormer with ResNet-50, as configured, runs whole on the CPU."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model

from dformer.d2.config import get_cfg, merge_config
from tests import ROOT
from tests.d2.tiny import tiny_batch

SIZE = 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
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
