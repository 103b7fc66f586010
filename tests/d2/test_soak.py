"""Memory, open files and threads do not grow in 2,000 steps of a tiny training."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.engine import HookBase

from dformer.d2.engine.run import set_up
from dformer.d2.engine.trainer import Trainer
from tests.d2.tiny import own_loggers, small_shapes, tiny_cfg

STEPS, WARM_UP, EVERY = 2000, 1000, 50  # scalars are kept for 1,000 steps


class Census(HookBase):
    """Count memory, files and threads of the process."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int, int, int]] = []  # step, resident bytes, open files, threads

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % EVERY == 0:
            gc.collect()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            self.counts.append((self.trainer.iter + 1, resident, files, threads))


@pytest.mark.slow
def test_memory_files_and_threads_do_not_grow(tmp_path):
    small_shapes(tmp_path, "test_soak", train=32, val=4)
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("test_soak_train",), ("test_soak_val",)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = STEPS, 500
    cfg.VIS_PERIOD, cfg.TEST.EVAL_PERIOD = 200, 500
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    Path(cfg.OUTPUT_DIR).mkdir()
    census = Census()
    with own_loggers():
        trainer = Trainer(set_up(cfg, write_config=True))
        trainer.register_hooks([census])
        trainer.resume_or_load(resume=False)
        trainer.train()

    steps, resident, files, threads = np.array([c for c in census.counts if c[0] > WARM_UP]).T
    slope = np.polyfit(steps, resident, 1)[0]  # bytes a step
    print(f"resident {resident[-1] / 2**20:.0f} MiB, slope {slope:.0f} bytes a step, files {files}, threads {threads}")
    assert slope < 2048, census.counts  # in a run of 370,000 steps less than 0.8 GB
    assert max(files) <= files[0] + 1, files  # Detectron2's evaluation and PyTorch's workers come and go
    assert max(threads) <= threads[0] + 1, threads
