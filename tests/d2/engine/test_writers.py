"""What a run tells: the log line, pictures, and the record of how it was started."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage, get_event_storage

from dformer.d2.engine.hooks.writers import KEPT, LogLine, bound_history
from dformer.d2.engine.provenance import write_record
from tests.d2.tiny import tiny_cfg


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
