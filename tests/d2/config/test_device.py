"""Device and precision of a model."""

import pytest
import torch

from dformer.d2.config import get_cfg
from dformer.d2.config.device import inference_autocast, resolve_device
from dformer.utils.errors import UserError


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


def test_an_unknown_amp_type_is_named():
    cfg = get_cfg()
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "float8"
    with pytest.raises(UserError, match=r"SOLVER\.AMP\.DTYPE"):
        inference_autocast(cfg)


@pytest.mark.parametrize(
    ("has_gpu", "device", "is_explicit", "num_gpus", "resolved"),
    [
        (False, "cpu", False, 1, "cpu"),
        (False, "cuda", False, 0, "cpu"),
        (False, "cuda", False, 1, "cpu"),
        (False, "cuda", True, 1, "MODEL.DEVICE cuda"),
        (False, "cuda", False, 2, "--num-gpus 2"),
        (False, "cpu", True, 2, "cpu"),
        (True, "cuda", False, 1, "cuda"),
        (True, "cuda", False, 0, "cpu"),
    ],
)
def test_the_device_with_and_without_a_gpu(monkeypatch, has_gpu, device, is_explicit, num_gpus, resolved):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    if resolved in ("cpu", "cuda"):
        assert resolve_device(device, is_explicit, num_gpus) == resolved
    else:
        with pytest.raises(UserError, match=resolved):
            resolve_device(device, is_explicit, num_gpus)
