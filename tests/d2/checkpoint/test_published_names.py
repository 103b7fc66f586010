"""Published checkpoints by name, from a server on this machine."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dformer
from dformer.d2.config import get_cfg, merge_config
from dformer.utils.errors import UserError
from dformer.weights.published.downloads import MODELS, PAGES, Published
from tests import ROOT, run_script
from tests.d2.tiny import random_model
from tests.server import serving

NAME = "mask2former/tiny/panoptic/r1"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with a tiny Mask2Former, which has `NAME`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    cfg = random_model(tmp_path / "served" / "model.pth", "Mask2Former")
    cfg.MODEL.WEIGHTS = ""
    (tmp_path / "config.yaml").write_text(cfg.dump())
    md5 = hashlib.md5((tmp_path / "served" / "model.pth").read_bytes()).hexdigest()[:6]
    with serving(tmp_path / "served") as server:
        entry = Published(f"{server.url}/model.pth", md5, str(tmp_path / "config.yaml"), "a licence")
        monkeypatch.setitem(MODELS, NAME, entry)
        yield server


def test_each_name_has_its_config():
    for name, model in MODELS.items():
        system, data, task, backbone = name.split("/")
        cfg = get_cfg()
        merge_config(cfg, str(ROOT / "configs" / model.config), [])
        assert cfg.MODEL.META_ARCHITECTURE.lower() == system and task == cfg.INPUT.TASK
        assert cfg.DATASETS.TEST[0].startswith(data) and backbone in model.config
        assert model.md5 in model.url and f"/{data}/{task}/" in model.url
    assert len({model.url for model in MODELS.values()}) == len(MODELS) == 25


def test_a_photograph_by_one_command(server, tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    command = ["tools/demo.py", "--weights", NAME, "--input", tmp_path / "photo.png", "--output", tmp_path / "out"]
    server.break_off = 100_000
    assert run_script(*command) == 2
    server.break_off = None
    assert run_script(*command) == 0
    assert "a licence" in caplog.text and server.asked == [0, 100_000]
    found = json.loads((tmp_path / "out" / "segments.json").read_text())
    assert found["weights"] == NAME and found["images"][0]["segments"]
    model = dformer.load(NAME)
    assert model(pixels).to_coco() == found["images"][0]["segments"] and len(server.asked) == 2


def test_names_that_are_none_and_pages_for_browsers(capsys):
    with pytest.raises(UserError, match="mask2former/coco/panoptic/r5.*did you mean.*r50"):
        dformer.load("mask2former/coco/panoptic/r5")
    with pytest.raises(UserError, match="browser.*https://pan"):
        dformer.load(next(iter(PAGES)))


def test_a_file_of_that_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(NAME).parent.mkdir(parents=True)
    random_model(Path(NAME), "Mask2Former")
    assert dformer.load(NAME).class_names
