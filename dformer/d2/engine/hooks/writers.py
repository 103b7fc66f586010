"""Logged numbers of a training: the log line, metrics.json, TensorBoard and trackers, also across a resume."""

import datetime
import logging
import os
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer

from dformer.d2.engine.hooks.trackers import TrackerWriter

logger = logging.getLogger(__name__)

FIRST = 3  # steps before the first line, the first that Detectron2's timer times
WINDOW = 20  # steps over which losses and times are smoothed
MAX_HISTORY = 1000  # values of each scalar in memory; Detectron2 keeps a million, a gigabyte in a run of some days
# Scalars that describe the process, which a resumed run measures anew.
NOT_RESUMED = {"time", "data_time", "eta_seconds", "images_per_second", "memory_gib"}


class Writers(HookBase):
    """Write the scalars each `period` iterations; after a resume, metrics.json continues as if the run had not stopped.

    A written value is the median of the last ones, so a checkpoint holds these. Lines of metrics.json that were written
    after the checkpoint are removed, as their steps are run again. Belongs in all processes; the main one writes.
    """

    def __init__(self, cfg: CfgNode, period: int) -> None:
        self.metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
        self.period = period
        self.writers: list[EventWriter] = []
        if comm.is_main_process():
            tensorboard = TensorboardXWriter(cfg.OUTPUT_DIR, WINDOW)
            trackers = [TrackerWriter(name, cfg, WINDOW) for name in cfg.TRACKING.WRITERS]
            self.writers = [LogLine(cfg), JSONWriter(str(self.metrics), WINDOW), tensorboard, *trackers]
        self.last_written = -1  # iteration
        self.resumed: dict[str, Any] | None = None

    def before_train(self) -> None:
        storage: EventStorage = self.trainer.storage
        storage._history = defaultdict(partial(HistoryBuffer, max_length=MAX_HISTORY))
        if self.resumed is not None and self.writers:
            self._restore(storage, **self.resumed)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            for writer in self.writers:
                writer.write()
            self.last_written = self.trainer.iter
        elif done - self.trainer.start_iter == FIRST and self.writers:
            self.writers[0].write()  # the log line alone, to tell early how long it will take

    def after_train(self) -> None:
        self.close(is_done=self.trainer.iter >= self.trainer.max_iter)  # else the resumed run writes what is left

    def close(self, is_done: bool) -> None:
        """End the writers; if the training `is_done`, write what is left first."""
        for writer in self.writers:
            if is_done:
                writer.write()
            writer.close()

    def state_dict(self) -> dict[str, Any]:
        storage: EventStorage = self.trainer.storage
        hints = storage.smoothing_hints()
        scalars = {
            name: {"smoothed": hints[name], "values": [[value, int(i)] for value, i in history.values()[-WINDOW:]]}
            for name, history in storage.histories().items()
            if name not in NOT_RESUMED
        }
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        return {"scalars": scalars, "size": size, "last_written": self.last_written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = state

    def restart(self) -> None:
        """Forget the lines of a run that was stopped before its first checkpoint."""
        self.resumed = {"scalars": {}, "size": 0, "last_written": -1}

    def _restore(self, storage: EventStorage, scalars: dict[str, Any], size: int, last_written: int) -> None:
        self.last_written = last_written
        iteration = storage.iter
        for name, scalar in scalars.items():
            for value, i in scalar["values"]:
                storage.iter = i
                storage.put_scalar(name, value, smoothing_hint=scalar["smoothed"])
            if storage.iter <= last_written:
                del storage.latest()[name]  # the writers would write it again
        storage.iter = iteration
        if self.metrics.stat().st_size > size:
            os.truncate(self.metrics, size)


class LogLine(EventWriter):
    """Log the time left, losses, learning rate, times, images per second and memory in one line.

    Adds the scalars `images_per_second`, `eta_seconds` and `memory_gib` to the storage, for the other writers.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.batch_size = cfg.SOLVER.IMS_PER_BATCH  # of all processes
        self.device = torch.device(cfg.MODEL.DEVICE)

    def write(self) -> None:
        """Log the line of the current iteration; nothing after the last step, which has its line."""
        storage = get_event_storage()
        if storage.iter >= self.max_iter:
            return
        seconds_left = None
        if "time" in storage.histories():  # not in the first steps, which are slow
            time = storage.history("time")
            seconds_left = time.median(MAX_HISTORY) * (self.max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds_left, smoothing_hint=False)
            storage.put_scalar("images_per_second", self.batch_size / time.avg(WINDOW), smoothing_hint=False)
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device)
        else:
            import resource  # not on Windows, where this module is imported too

            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        storage.put_scalar("memory_gib", memory / 2**30, smoothing_hint=False)
        logger.info(_line(storage, seconds_left))


def _line(storage: EventStorage, seconds_left: float | None) -> str:
    histories = storage.histories()
    parts = [] if seconds_left is None else [f"eta: {datetime.timedelta(seconds=int(seconds_left))}"]
    parts.append(f"iter: {storage.iter}")
    parts += [f"{name}: {history.median(WINDOW):.4g}" for name, history in histories.items() if "loss" in name]
    parts += [f"{name}: {histories[name].avg(WINDOW):.3g} s" for name in ("time", "data_time") if name in histories]
    for name, form in (("lr", ".5g"), ("images_per_second", ".3g"), ("memory_gib", ".2f")):
        if name in histories:
            parts.append(f"{name}: {histories[name].latest():{form}}")
    return "  ".join(parts)
