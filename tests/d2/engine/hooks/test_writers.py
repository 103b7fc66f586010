"""The log line, and when it comes."""

import json
from pathlib import Path

import pytest
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import EventStorage

from dformer.d2.engine.hooks.writers import LogLine, Writers
from tests.d2.tiny import tiny_cfg


def test_the_log_line(caplog):
    cfg = tiny_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 1000, 8
    with EventStorage() as storage, caplog.at_level("INFO", "dformer"):
        for _ in range(100):
            storage.put_scalars(total_loss=3.5, loss_ce=1.25, lr=1e-4, data_time=0.01, time=0.5, other=7)
            storage.step()
        LogLine(cfg).write()
        (message,) = caplog.messages
        expected = ("eta: 0:07:29", "iter: 100", "total_loss: 3.5", "loss_ce: 1.25", "time: 0.5 s", "data_time: 0.01 s")
        assert [part for part in (*expected, "lr: 0.0001", "images_per_second: 16") if part not in message] == []
        assert "other" not in message
        gibibytes = float(message.rpartition("memory_gib: ")[2])
        assert 0.1 < gibibytes < 50
        storage.iter = 1000
        LogLine(cfg).write()
        assert len(caplog.messages) == 1


class Counting(TrainerBase):
    """Count steps."""

    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", 1.0)


@pytest.mark.parametrize("start", [0, 10])
def test_the_first_line_comes_after_three_steps_and_files_get_theirs_as_always(tmp_path, caplog, start):
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(tmp_path), 45
    trainer = Counting()
    trainer.register_hooks([hooks.IterationTimer(), Writers(cfg, period=20)])
    with caplog.at_level("INFO", "dformer"):
        trainer.train(start, 45)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("dformer")]
    assert [line.partition("iter: ")[2].split()[0] for line in logged] == [str(start + 2), "19", "39", "44"]
    assert all("eta: " in line and "time: " in line for line in logged)
    lines = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [19, 39, 44]
