"""Provenance of a run."""

import json
import subprocess
import sys

import torch

from dformer.d2.engine.provenance import write_provenance
from tests import ROOT
from tests.d2.tiny import tiny_cfg


def test_each_start_of_a_run_has_its_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "tools/train_net.py", "OUTPUT_DIR", "a b"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    write_provenance(cfg, 0)
    write_provenance(cfg, 500)
    first, second = json.loads((tmp_path / "runs.json").read_text())
    assert (first["start_iter"], second["start_iter"]) == (0, 500)
    assert first["command"] == "python tools/train_net.py OUTPUT_DIR 'a b'"
    assert (first["seed"], first["processes"], first["environment"]["OMP_NUM_THREADS"]) == (3, 1, "3")
    assert torch.__version__.startswith(first["versions"]["torch"])
    assert first["config"] == cfg.dump()
    assert "hush" not in json.dumps(first)
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        assert first["git"]["commit"] == head.stdout.strip()
