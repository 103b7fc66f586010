"""The model that comes with the package is as good as is said."""

import json
import sys

import pytest

from dformer.apps import shapes as shapes_data
from dformer.d2.checkpoint.checkpointer import ASSETS, shipped_models
from dformer.d2.data import register_shapes
from tests import ROOT, load_script
from tests.d2.tiny import own_loggers

train_net = load_script("tools/train_net.py")

CONFIG = "configs/quick/dformer_shapes_long.yaml"


def test_it_evaluates_to_its_stated_quality(monkeypatch, tmp_path):
    stated = json.loads((ROOT / "benchmarks/results/training/shapes.json").read_text())["PQ"]
    assert f"PQ {stated:.1f}" in (ROOT / "README.md").read_text()
    # validation images do not depend on the number of others
    shapes_data.generate(tmp_path, shapes_data.Parameters(train=1), progress=False)
    register_shapes(tmp_path, "shipped_shapes")
    options = ["DATASETS.TEST", "('shipped_shapes_val',)", "DATALOADER.NUM_WORKERS", "0"]
    options += ["MODEL.WEIGHTS", "dformer://shapes", "OUTPUT_DIR", str(tmp_path / "out")]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--eval-only", "--config-file", CONFIG, *options])
    with own_loggers():
        train_net.main()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["PQ"] == pytest.approx(stated, abs=0.1)


def test_it_is_small():
    assert shipped_models() == ["dformer://shapes"]
    assert (ASSETS / "shapes.safetensors").stat().st_size <= 12e6
