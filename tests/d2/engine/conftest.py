"""A model, data and a cfg for trainings that are as small as can be."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dformer.d2.config import get_cfg
from dformer.d2.engine import trainer
from tests.d2.tiny import own_loggers


@pytest.fixture(autouse=True)
def loggers():
    with own_loggers():
        yield


@META_ARCH_REGISTRY.register()
class LineModel(nn.Module):
    """Fits a line. `iteration` counts, as that of our models."""

    def __init__(self, cfg) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)
        self.iteration = 0
        self.trained: list[int] = []  # iterations
        self.dtypes: list[torch.dtype] = []

    def initialize(self) -> None:
        """All of its weights are drawn when it is built."""

    def forward(self, batch):
        if not self.training:
            self.dtypes.append(self.backbone(torch.zeros(1, 4)).dtype)
            return [self for _ in batch]
        self.trained.append(self.iteration)
        self.iteration += 1
        x = torch.stack([item["x"] for item in batch])
        y = self.head(self.backbone(x))
        self.dtypes.append(y.dtype)
        loss = (y.float() - 1).square().mean()
        return {"loss_ce": 0.5 * loss * batch[0]["factor"], "loss_ce_0": 0.5 * loss}


class Data:
    """Training batches that depend on the iteration alone, and the outcomes of evaluations."""

    def __init__(self) -> None:
        self.stop: int | None = None  # iteration at which loading fails
        self.factors: dict[int, float] = {}  # of the loss, by iteration
        self.scores: list[Any] = []  # PQ of the next evaluations; a signal or an error interrupts one
        self.evaluated: list[tuple[int, torch.Tensor]] = []  # iteration and head.weight at each evaluation
        self.start = 0
        self.batch_sampler = self  # as of a real loader, which begins with batch `start`

    def __iter__(self):
        index = self.start
        while index != self.stop:
            x = torch.randn(4, generator=torch.Generator().manual_seed(index))
            yield [{"x": x, "factor": self.factors.get(index, 1.0)}]
            index += 1
        raise RuntimeError("no more data")


class Scores(DatasetEvaluator):
    def __init__(self, data: Data, folder: str) -> None:
        self.data, self.file = data, Path(folder) / f"prediction_{len(data.evaluated)}"

    def process(self, inputs, outputs):
        if self.data.scores and isinstance(self.data.scores[0], signal.Signals):
            os.kill(os.getpid(), self.data.scores.pop(0))
        self.file.touch()
        self.model = outputs[0]

    def evaluate(self):
        self.data.evaluated.append((self.model.iteration, self.model.head.weight.detach().clone()))
        score = self.data.scores.pop(0) if self.data.scores else 42.0
        if isinstance(score, Exception):
            raise score
        metrics = {f"{name}{part}": 1.0 for name in ("PQ", "SQ", "RQ") for part in ("", "_th", "_st")}
        return {"panoptic_seg": metrics | {"PQ": score, "PQ_th": 41.0, "PQ_st": math.nan, "PQ_agnostic": 60.0}}


@pytest.fixture
def data(monkeypatch):
    """In place of data sets on the disk, for training and evaluation."""
    data = Data()
    monkeypatch.setattr("dformer.d2.engine.run.check", lambda cfg, eval_only: [])
    monkeypatch.setattr(trainer, "build_train_loader", lambda cfg: data)
    monkeypatch.setattr("dformer.d2.evaluation.evaluate.build_test_loader", lambda cfg, name: [[{}]] * 3)
    monkeypatch.setattr(
        "dformer.d2.evaluation.evaluate.build_evaluators", lambda cfg, name, folder: Scores(data, folder)
    )
    return data


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "LineModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("somewhere",)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.BASE_LR = 6, 3, 0.01
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = "WarmupPolyLR", 2, 0.1
    cfg.SEED = 1
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg
