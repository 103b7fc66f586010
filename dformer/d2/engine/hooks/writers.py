"""What a run tells while it trains: a line a period, metrics.json, TensorBoard."""

import datetime
import logging
import os
import resource
import sys
from collections import defaultdict
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer

logger = logging.getLogger(__name__)

WINDOW = 20  # steps over which losses and times are smoothed
KEPT = 1000  # values of each scalar in memory


def writers(cfg: CfgNode) -> list[EventWriter]:
    """The log line, and OUTPUT_DIR's metrics.json and TensorBoard events."""
    metrics = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
    return [LogLine(cfg), JSONWriter(metrics, WINDOW), TensorboardXWriter(cfg.OUTPUT_DIR, WINDOW)]


class LogLine(EventWriter):
    """Time left, losses, learning rate, times, images a second and memory, in one line.

    Adds the scalars `images_per_second`, `eta_seconds` and `memory_gib` to the storage, for the other writers.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.batch_size = cfg.SOLVER.IMS_PER_BATCH  # of all processes
        self.device = torch.device(cfg.MODEL.DEVICE)

    def write(self) -> None:
        """Log where the run is."""
        storage = get_event_storage()
        if storage.iter >= self.max_iter:
            return  # after the last step, which has its line
        left = None
        if "time" in storage.histories():  # not in the first steps, which are slow
            time = storage.history("time")
            left = time.median(KEPT) * (self.max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            storage.put_scalar("images_per_second", self.batch_size / time.avg(WINDOW), smoothing_hint=False)
        storage.put_scalar("memory_gib", memory(self.device) / 2**30, smoothing_hint=False)
        logger.info(line(storage, left))


def line(storage: EventStorage, seconds_left: float | None) -> str:
    """The line: what there is of it in `storage`."""
    histories = storage.histories()
    parts = [] if seconds_left is None else [f"eta: {datetime.timedelta(seconds=int(seconds_left))}"]
    parts.append(f"iter: {storage.iter}")
    parts += [f"{name}: {history.median(WINDOW):.4g}" for name, history in histories.items() if "loss" in name]
    parts += [f"{name}: {histories[name].avg(WINDOW):.3g} s" for name in ("time", "data_time") if name in histories]
    for name, form in (("lr", ".5g"), ("images_per_second", ".3g"), ("memory_gib", ".2f")):
        if name in histories:
            parts.append(f"{name}: {histories[name].latest():{form}}")
    return "  ".join(parts)


def memory(device: torch.device) -> int:
    """The most bytes that this process has had so far: on the GPU where it has one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bound_history(storage: EventStorage) -> None:
    """Let a new storage keep the last values only. Detectron2 keeps a million, a gigabyte in a run of some days."""
    storage._history = defaultdict(partial(HistoryBuffer, max_length=KEPT))
