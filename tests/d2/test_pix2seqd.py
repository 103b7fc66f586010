"""Pix2Seq-D through everything that a user starts: training, resuming, evaluation, demo, page, Python, figures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dformer
from dformer.apps.interactive import load_model, segment
from dformer.d2.engine.run import check, run
from tests import run_script
from tests.d2.systems import pix2seqd_cfg
from tests.d2.tiny import own_loggers, small_shapes


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pix2seqd")
    small_shapes(folder, "bits", train=6, val=2)
    cfg = pix2seqd_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("bits_train",), ("bits_val",)
    cfg.INPUT.update(AUGMENTATION="resize", MIN_SIZE_TRAIN=(64,), MIN_SIZE_TEST=64)
    cfg.MODEL.EMA_DECAY, cfg.DETERMINISTIC, cfg.VIS_PERIOD = 0.5, True, 4
    cfg.SOLVER.AMP.update(ENABLED=True, DTYPE="bfloat16")
    cfg.SOLVER.update(MAX_ITER=4, CHECKPOINT_PERIOD=2, BASE_LR=0.001, LR_SCHEDULER_NAME="WarmupPolyLR")
    cfg.DIFFUSION.SAMPLING_STEPS, cfg.OUTPUT_DIR = 2, str(folder / "whole")
    check(cfg)
    with own_loggers():
        run(cfg)
    yield cfg
    torch.use_deterministic_algorithms(False)


def read(folder):
    return torch.load(f"{folder}/model_final.pth", weights_only=True)


def test_resumed_bit_for_bit_in_mixed_precision(cfg, tmp_path):
    shutil.copytree(cfg.OUTPUT_DIR, tmp_path / "again")
    (tmp_path / "again/model_final.pth").unlink()
    (tmp_path / "again/last_checkpoint").write_text("model_0000001.pth")
    again = cfg.clone()
    again.OUTPUT_DIR = str(tmp_path / "again")
    with own_loggers():
        run(again, resume=True)
    whole, resumed = read(cfg.OUTPUT_DIR), read(again.OUTPUT_DIR)
    for key in ("model", "model_ema"):
        assert all(torch.equal(whole[key][name], resumed[key][name]) for name in whole[key])
    name = "head.decoder.conv_in.weight"
    assert not torch.equal(whole["model"][name], whole["model_ema"][name])


def test_the_average_is_what_is_evaluated(cfg, tmp_path):
    """As is what the file of weights gives when it is evaluated alone."""
    results = json.loads(Path(cfg.OUTPUT_DIR, "results.json").read_text())
    assert {"PQ", "AP", "mIoU"} <= set(results)
    weights = read(cfg.OUTPUT_DIR)
    torch.save({"model": weights["model_ema"]}, tmp_path / "average.pth")
    alone = cfg.clone()
    alone.MODEL.WEIGHTS, alone.MODEL.EMA_DECAY = str(tmp_path / "average.pth"), 0.0
    alone.OUTPUT_DIR = str(tmp_path / "eval")
    with own_loggers():
        run(alone, eval_only=True)
    assert json.loads((tmp_path / "eval/results.json").read_text())["mIoU"] == pytest.approx(results["mIoU"])


def test_demo_page_python_and_figures(cfg, tmp_path):
    weights, image = f"{cfg.OUTPUT_DIR}/model_final.pth", np.zeros((48, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    (result,) = dformer.load(weights).predict([image])
    assert result["sem_seg"].shape == (7, 48, 80) and result["panoptic_seg"][0].shape == (48, 80)

    with own_loggers():
        demo = ["--weights", weights, "--input", tmp_path / "image.png", "--output", tmp_path / "demo"]
        assert run_script("tools/demo.py", *demo, "--steps", 3) == 0
        figures = tmp_path / "steps.png", tmp_path / "steps.gif"
        data = ["--weights", weights, "--dataset", "bits_val"]
        assert run_script("tools/visualize_diffusion.py", *data, "--output", *figures) == 0
        noise = ["--times", "0", "0.5", "1", "--output", tmp_path / "noise.png"]
        assert run_script("tools/visualize_diffusion.py", *data, *noise) == 0
    assert (tmp_path / "demo/segments.json").exists()
    assert Image.open(figures[1]).n_frames == 2

    predictor = load_model(weights)
    request = replace(predictor.model.request, tasks=("panoptic",), steps=3, seed=2)
    answer = segment(predictor, image, request, seconds=600)
    assert [stage.t for stage in answer] == pytest.approx([1, 2 / 3, 1 / 3])
