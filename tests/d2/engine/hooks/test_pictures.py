"""Pictures of a training show annotation, noise and prediction, and change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dformer.d2.engine.hooks.pictures import Pictures
from dformer.d2.engine.run import run
from tests.d2.tiny import own_loggers, small_shapes, tiny_cfg

SHAPES = "pictures_shapes"


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory) -> None:
    small_shapes(tmp_path_factory.mktemp("shapes"), SHAPES, train=4, val=2)


def config(meta_architecture: str, task: str, folder: Path) -> CfgNode:
    cfg = tiny_cfg(meta_architecture)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{SHAPES}_train",), (f"{SHAPES}_val",)
    cfg.INPUT.TASK, cfg.VIS_PERIOD = task, 2
    cfg.OUTPUT_DIR = str(folder)
    return cfg


@pytest.mark.parametrize("meta_architecture", ["DFormer", "Mask2Former"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_pictures_show_annotation_noise_and_prediction(tmp_path, meta_architecture, task):
    cfg = config(meta_architecture, task, tmp_path)
    model = build_model(cfg).train()
    pictures = Pictures(cfg)
    assert len(pictures.batch) == 2 and pictures.name == f"{SHAPES}_val"
    drawn = pictures.draw(model, pictures.batch[0])
    noise = ["at t = 0, 15, 124, 421, 999"] if meta_architecture == "DFormer" else []
    assert list(drawn) == ["annotated", *noise, "predicted"]
    assert all(x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3 for x in drawn.values())
    assert not np.array_equal(drawn["annotated"], drawn["predicted"])
    assert model.training and model.iteration == 0


def test_masks_fade_into_noise_row_by_row(tmp_path):
    cfg = config("DFormer", "panoptic", tmp_path)
    pictures = Pictures(cfg)
    item = pictures.batch[0]
    count = min(len(item["instances"]), 6)
    (grid,) = (x for kind, x in pictures.draw(build_model(cfg).train(), item).items() if kind.startswith("at t"))
    rows = grid[..., 0].reshape(5, 98, count, 98)[:, :96, :, :96].transpose(0, 2, 1, 3) / 255  # without the gaps
    right = [((row > 0.5) == (rows[0] > 0.5)).mean() for row in rows]
    assert right == sorted(right, reverse=True) and right[0] == 1 and right[-1] == pytest.approx(0.5, abs=0.1)


def test_pictures_reach_tensorboard_and_change_nothing(tmp_path):
    weights = []
    for period, folder in ((0, tmp_path / "without"), (1, tmp_path / "with")):
        cfg = config("DFormer", "panoptic", folder)
        cfg.VIS_PERIOD, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = period, 2, ()
        folder.mkdir()
        with own_loggers():
            run(cfg)
        weights.append(torch.load(folder / "model_final.pth", weights_only=True)["model"])
        (events,) = folder.glob("events.out.tfevents.*")
        assert (b"annotated" in events.read_bytes()) == bool(period)
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
