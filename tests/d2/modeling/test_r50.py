"""The COCO panoptic DFormer with ResNet-50, as configured, runs whole on the CPU."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from dformer.d2.config import get_cfg, merge_config
from tests import ROOT

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
    """One image with ten rectangles."""
    generator = torch.Generator().manual_seed(0)
    instances = Instances((SIZE, SIZE))
    instances.gt_classes = torch.randint(133, (10,), generator=generator)
    instances.gt_masks = torch.zeros(10, SIZE, SIZE, dtype=torch.bool)
    for mask in instances.gt_masks:
        top, left = torch.randint(SIZE - 100, (2,), generator=generator).tolist()
        mask[top : top + 100, left : left + 80] = True
    pixels = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "image_id": 0, "height": SIZE, "width": SIZE, "instances": instances}


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def test_size(model):
    assert 44e6 < sum(p.numel() for p in model.parameters()) < 46e6


@both_precisions
def test_a_training_step(model, image, dtype):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with autocast(dtype):
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
    with autocast(dtype):
        *_, last = model.eval().steps([image], request)
    (result,) = last.results
    assert result["sem_seg"].shape == (133, SIZE, SIZE) and result["sem_seg"].isfinite().all()
    assert result["panoptic_seg"][0].shape == (SIZE, SIZE)
    assert result["instances"].pred_masks.shape[1:] == (SIZE, SIZE)
