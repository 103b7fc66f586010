"""The log line."""

from detectron2.utils.events import EventStorage

from dformer.d2.engine.hooks.writers import LogLine
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
