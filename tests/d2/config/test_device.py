"""Mixed precision at inference."""

import pytest
import torch

from dformer.d2.config import get_cfg
from dformer.d2.config.device import inference_autocast


@pytest.mark.parametrize(
    ("device", "enabled", "expected"),
    [("cuda", True, True), ("cuda:1", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_inference_is_mixed_on_gpus_only(monkeypatch, device, enabled, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # torch disables it where there is no GPU
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = device, enabled, "float16"
    with inference_autocast(cfg):
        assert torch.is_autocast_enabled("cuda") == expected
        assert not torch.is_autocast_enabled("cpu")
