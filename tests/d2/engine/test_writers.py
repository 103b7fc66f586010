"""What a run tells: the log line, pictures, and the record of how it was started."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage, get_event_storage

from dformer.d2.data import register_shapes
from dformer.d2.engine.hooks.pictures import TIMES, Pictures, noisy_masks
from dformer.d2.engine.hooks.writers import KEPT, LogLine, bound_history
from dformer.d2.engine.provenance import write_record
from dformer.d2.engine.run import run
from dformer.models.dformer import MaskDiffusion
from tests.d2.tiny import own_loggers, tiny_cfg
from tests.datasets import load_script

SHAPES = "test_observe_shapes"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> str:
    script = load_script("shapes")
    root = tmp_path_factory.mktemp("shapes")
    script.generate(root, script.Parameters(train=4, val=2, size=64), progress=False)
    register_shapes(root, SHAPES)
    return SHAPES


def config(meta_architecture: str, task: str, folder: Path) -> CfgNode:
    cfg = tiny_cfg(meta_architecture)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{SHAPES}_train",), (f"{SHAPES}_val",)
    cfg.INPUT.TASK, cfg.VIS_PERIOD = task, 2
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def test_the_line_tells_all(caplog):
    cfg = tiny_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 1000, 8
    with EventStorage() as storage, caplog.at_level("INFO", "dformer"):
        for _ in range(100):
            storage.put_scalars(total_loss=3.5, loss_ce=1.25, lr=1e-4, data_time=0.01, time=0.5, other=7)
            storage.step()
        LogLine(cfg).write()
        (message,) = caplog.messages
        told = ("eta: 0:07:29", "iter: 100", "total_loss: 3.5", "loss_ce: 1.25", "time: 0.5 s", "data_time: 0.01 s")
        assert [part for part in (*told, "lr: 0.0001", "images_per_second: 16") if part not in message] == []
        assert "other" not in message
        gibibytes = float(message.rpartition("memory_gib: ")[2])
        assert 0.1 < gibibytes < 50
        storage.iter = 1000
        LogLine(cfg).write()
        assert len(caplog.messages) == 1


def test_scalars_are_kept_for_a_while_only():
    with EventStorage() as storage:
        bound_history(storage)
        for k in range(3 * KEPT):
            get_event_storage().put_scalar("loss", k)
        assert [value for value, _ in get_event_storage().history("loss").values()] == list(range(2 * KEPT, 3 * KEPT))


@pytest.mark.parametrize("meta_architecture", ["DFormer", "Mask2Former"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_pictures_show_annotation_noise_and_prediction(shapes, tmp_path, meta_architecture, task):
    cfg = config(meta_architecture, task, tmp_path)
    model = build_model(cfg).train()
    pictures = Pictures(cfg)
    tasks, iteration = model.tasks, model.iteration
    assert len(pictures.items) == 2 and pictures.name == f"{SHAPES}_val"
    drawn = pictures.draw(model, pictures.items[0])
    noisy = ["masks at t = 0, 15, 124, 421, 999"] if meta_architecture == "DFormer" else []
    assert list(drawn) == ["annotated", *noisy, "predicted"]
    assert all(x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3 for x in drawn.values())
    assert not np.array_equal(drawn["annotated"], drawn["predicted"])
    assert model.training and (model.tasks, model.iteration) == (tasks, iteration)


def test_masks_drown_in_noise_row_by_row():
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    for k, mask in enumerate(masks):
        mask[16 * k : 16 * k + 32, 8:40] = True
    times, grid = noisy_masks(masks, MaskDiffusion.create("cosine", 1000, 0.1, "binary", stride=4))
    assert times[0] == 0 and times[-1] == 999 and len(times) == TIMES
    rows = grid[..., 0].reshape(TIMES, 98, 3, 98)[:, :96, :, :96].transpose(0, 2, 1, 3) / 255  # without the gaps
    truth = rows[0] > 0.5
    assert sorted(truth.mean((1, 2)).tolist()) == pytest.approx([0.25] * 3, abs=0.02)
    right = [((row > 0.5) == truth).mean() for row in rows]
    assert right == sorted(right, reverse=True)
    assert right[0] == 1 and right[-1] == pytest.approx(0.5, abs=0.1)


def test_pictures_reach_tensorboard_and_change_nothing(shapes, tmp_path):
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


def test_a_run_is_written_down_each_time_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "tools/train_net.py", "OUTPUT_DIR", "a b"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    write_record(cfg, 0)
    write_record(cfg, 500)
    first, second = json.loads((tmp_path / "runs.json").read_text())
    assert (first["start_iter"], second["start_iter"]) == (0, 500)
    assert first["command"] == "python tools/train_net.py OUTPUT_DIR 'a b'"
    assert (first["seed"], first["processes"], first["environment"]["OMP_NUM_THREADS"]) == (3, 1, "3")
    assert torch.__version__.startswith(first["versions"]["torch"])
    assert first["config"] == cfg.dump()
    assert "hush" not in json.dumps(first)
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
        assert first["git"]["commit"] == head.stdout.strip()
