"""The COCO panoptic DFormer with ResNet-50, as configured, runs whole on the CPU."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model

from dformer.d2.config import get_cfg, merge_config
from tests import ROOT
from tests.d2.tiny import tiny_batch

CONFIG = ROOT / "configs/coco/panoptic/dformer_r50_50ep.yaml"
SIZE = 512


@pytest.fixture(scope="module")
def model():
    cfg = get_cfg()
    merge_config(cfg, str(CONFIG), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.fixture
def image():
    (item,) = tiny_batch((10,), SIZE)
    return item


both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@both_precisions
def test_a_training_step(model, image, dtype):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = model.train()([image])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    assert len(losses) == 27  # three for each of nine layers
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@both_precisions
@pytest.mark.parametrize("steps", [1, 4])
def test_inference(model, image, steps, dtype):
    request = replace(model.request, steps=steps)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        *_, last = model.eval().steps([image], request)
    (result,) = last.results
    assert result["sem_seg"].shape == (133, SIZE, SIZE) and result["sem_seg"].isfinite().all()
    assert result["panoptic_seg"][0].shape == (SIZE, SIZE)
    assert result["instances"].pred_masks.shape[1:] == (SIZE, SIZE)
