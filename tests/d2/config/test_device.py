"""Device and precision of a model."""

import pytest
import torch

from dformer.d2.config import get_cfg
from dformer.d2.config.device import inference_autocast, resolve_device
from dformer.utils.errors import UserError


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
@pytest.mark.parametrize("enabled", [True, False])
def test_inference_is_in_float32_unless_asked_otherwise(monkeypatch, device, enabled):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # torch disables it where there is no GPU
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = device, True
    cfg.TEST.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = enabled, "float16"
    kind = device.partition(":")[0]
    with inference_autocast(cfg):
        assert {name for name in ("cpu", "cuda") if torch.is_autocast_enabled(name)} == ({kind} if enabled else set())
        assert not enabled or torch.get_autocast_dtype(kind) == torch.float16


def test_an_unknown_amp_type_is_named():
    cfg = get_cfg()
    cfg.TEST.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "float8"
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
