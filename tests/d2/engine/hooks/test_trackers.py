"""Trackers get what metrics.json gets. They are stand-ins with the functions that we call, in files of their own."""

import json
import sys
from pathlib import Path

import pytest
from detectron2.engine import TrainerBase, hooks

from dformer.d2.engine.hooks.writers import Writers
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_cfg

WANDB = """
import json, pathlib
class Run:
    def __init__(self, dir, id, **options):
        self.file, self.id = pathlib.Path(dir, "wandb.jsonl"), id or "new"
        self.write({"init": self.id, "lr": options["config"]["SOLVER"]["BASE_LR"], "project": options["project"]})
    def write(self, line):
        with self.file.open("a") as file:
            file.write(json.dumps(line) + chr(10))
    def log(self, scalars, step):
        self.write({"step": step, **scalars})
    def finish(self):
        self.write({"end": True})
def init(**options):
    return Run(**options)
"""
MLFLOW = """
import json, pathlib, types
lines = []
def set_experiment(name): lines.append({"project": name})
def start_run(run_id, run_name):
    lines.append({"init": run_id or "new", "name": run_name})
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))
def log_text(text, name): lines.append({"text": text})
def log_metrics(scalars, step): lines.append({"step": step, **scalars})
def end_run(): lines.append({"end": True})
"""


class Counting(TrainerBase):
    """Count steps."""

    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", float(self.iter))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    for name, code in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages" / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def lines(name: str, folder: Path) -> list[dict]:
    if name == "mlflow":
        return sys.modules["mlflow"].lines
    return [json.loads(line) for line in (folder / "wandb.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_each_number_once_and_a_resumed_run_continues_its_run(name, packages, tmp_path):
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(tmp_path), 45
    cfg.TRACKING.WRITERS, cfg.TRACKING.PROJECT = (name,), "mine"
    for start in (0, 40):
        trainer = Counting()
        trainer.register_hooks([hooks.IterationTimer(), Writers(cfg, period=20)])
        trainer.train(start, 45)
    found = lines(name, tmp_path)
    assert "mine" in [line.get("project") for line in found] and [line for line in found if "end" in line]
    assert [line["init"] for line in found if "init" in line] == ["new", "new"]
    assert (tmp_path / f"{name}_run").read_text() == "new"
    assert [line["step"] for line in found if "total_loss" in line] == [19, 39, 44, 44]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR, cfg.TRACKING.WRITERS = str(tmp_path), ("wandb",)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"dformer\[wandb\]"):
        Writers(cfg, period=20)
    cfg.TRACKING.WRITERS = ("wandbd",)
    with pytest.raises(UserError, match="TRACKING.WRITERS"):
        Writers(cfg, period=20)
