"""Parameter groups, clipping and learning-rate schedules, against what the config says in closed form."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dformer.d2.config import get_cfg
from dformer.d2.engine.optimizer import (
    build_optimizer,
    build_schedule,
    clip_gradients,
    parameter_groups,
    set_learning_rate,
)
from dformer.utils.errors import UserError

BASE, DECAY = 1e-3, 0.05


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.backbone[2].requires_grad_(False)
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Embedding(5, 4))
        self.head.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.shared = self.head[0]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = BASE
    cfg.SOLVER.WEIGHT_DECAY = DECAY
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.MAX_ITER = 100
    return cfg


def test_each_parameter_is_in_one_group_with_its_rate_and_decay(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.02
    expected = {
        "backbone.0.weight": (0.1 * BASE, DECAY),
        "backbone.0.bias": (0.1 * BASE, DECAY),
        "backbone.1.weight": (0.1 * BASE, 0.01),
        "backbone.1.bias": (0.1 * BASE, 0.01),
        "backbone.relative_position_bias_table": (0.1 * BASE, 0.02),
        "head.0.weight": (BASE, DECAY),
        "head.0.bias": (BASE, DECAY),
        "head.1.weight": (BASE, 0.01),
        "head.1.bias": (BASE, 0.01),
        "head.2.weight": (BASE, 0.01),
        "head.2.bias": (BASE, 0.01),
        "head.3.weight": (BASE, 0.02),
        "head.level_embed": (BASE, 0.02),
    }
    groups = parameter_groups(cfg, Model())
    listed = [(name, (group["lr"], group["weight_decay"])) for group in groups for name, _ in group["params"]]
    assert len(groups) == 6
    assert sorted(listed) == sorted(expected.items())


def test_optimizer_by_name(cfg):
    for name, kind in (("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)):
        cfg.SOLVER.OPTIMIZER = name
        assert type(build_optimizer(cfg, Model())) is kind


def test_clipping_scales_the_norm_of_all_gradients_together(cfg):
    optimizer = build_optimizer(cfg, Model())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in parameters)
    assert clip_gradients(cfg, optimizer).item() == pytest.approx(math.sqrt(count))
    assert all(torch.allclose(p.grad, torch.tensor(0.01 / math.sqrt(count))) for p in parameters)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert clip_gradients(cfg, optimizer).item() == pytest.approx(0.01, rel=1e-3)
    assert all(torch.allclose(p.grad, torch.tensor(0.01 / math.sqrt(count))) for p in parameters)


def learning_rates(cfg) -> list[tuple[float, float]]:
    """Of the backbone and of the head, at each iteration and at the end."""
    optimizer, schedule = build_optimizer(cfg, Model()), build_schedule(cfg)
    rates = []
    for iteration in range(cfg.SOLVER.MAX_ITER + 1):
        head = set_learning_rate(optimizer, schedule(iteration / cfg.SOLVER.MAX_ITER))
        rates.append((min(group["lr"] for group in optimizer.param_groups), head))
    return rates


@pytest.mark.parametrize(
    "name, factor",
    [
        ("WarmupMultiStepLR", lambda i: 0.1 ** ((i >= 60) + (i >= 90))),
        ("WarmupCosineLR", lambda i: 0.5 * (1 + math.cos(math.pi * i / 100))),
        ("WarmupPolyLR", lambda i: (1 - i / 100) ** 0.9),
    ],
)
@pytest.mark.parametrize("warmup", [0, 20])
def test_schedules_in_closed_form(cfg, name, factor, warmup):
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.STEPS = (60, 90, 100)
    cfg.SOLVER.WARMUP_ITERS = warmup
    cfg.SOLVER.WARMUP_FACTOR = 0.001
    for i, (backbone, head) in enumerate(learning_rates(cfg)):
        expected = factor(i) if i >= warmup else 0.001 + (factor(warmup) - 0.001) * i / warmup
        assert head == pytest.approx(BASE * expected, rel=1e-6, abs=1e-12), i
        assert backbone == pytest.approx(0.1 * BASE * expected, rel=1e-6, abs=1e-13), i


def test_a_run_shorter_than_its_warm_up(cfg):
    cfg.SOLVER.MAX_ITER = 3
    assert all(math.isfinite(rate) for rates in learning_rates(cfg) for rate in rates)


@pytest.mark.parametrize(
    ("key", "value"),
    [("OPTIMIZER", "value"), ("LR_SCHEDULER_NAME", "value"), ("CLIP_GRADIENTS.CLIP_TYPE", "value"), ("BASE_LR", 0.0)],
)
def test_values_that_cannot_be_are_refused(cfg, key, value):
    cfg.merge_from_list([f"SOLVER.{key}", value])
    with pytest.raises(UserError, match=f"SOLVER.{key}"):
        learning_rates(cfg)


@pytest.mark.golden
def test_golden_adamw_and_linear_decay(golden_dir, cfg):
    """Pix2Seq-D's: everything decays, the joint norm is clipped, the rate falls linearly to a tenth."""
    golden = load_file(golden_dir / "pix2seqd_optimizer.safetensors")
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01, 0.05, 1.0
    model = nn.Linear(*golden["start.kernel"].shape)
    names = {"kernel": model.weight, "bias": model.bias}
    for name, parameter in names.items():
        parameter.data = golden[f"start.{name}"].clone()
    optimizer = build_optimizer(cfg, model)
    for i in range(sum(key.endswith(".bias") for key in golden if key.startswith("grad."))):
        for name, parameter in names.items():
            parameter.grad = golden[f"grad.{i}.{name}"].clone()
        clip_gradients(cfg, optimizer)
        optimizer.step()
        for name, parameter in names.items():
            torch.testing.assert_close(parameter.data, golden[f"after.{i}.{name}"], rtol=0, atol=1e-5)

    config = {key: golden[f"config.{key}"].item() for key in ("base", "end_factor", "total", "warmup")}
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.POLY_POWER, cfg.SOLVER.WARMUP_ITERS = "WarmupPolyLR", 1.0, 0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END = config["base"], config["base"] * config["end_factor"]
    schedule = build_schedule(cfg)
    for step, lr in zip(golden["step"].tolist(), golden["lr"].tolist(), strict=True):
        if step >= config["warmup"]:  # the published decay begins where the warm-up ends, Detectron2's at the start
            where = (step - config["warmup"]) / (config["total"] - config["warmup"])
            assert config["base"] * schedule(where) == pytest.approx(lr, rel=1e-5)
