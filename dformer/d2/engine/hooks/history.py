"""The logged numbers of a run that is resumed: `metrics.json` goes on as if the run had never stopped.

A written value is a median of the last ones, so these are kept; and lines that were written after the checkpoint are
cut off, as their steps are done again.
"""

import os
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage

WINDOW = 20  # values of a median; of Detectron2's writers
History = dict[str, Any]
NO_HISTORY: History = {"scalars": {}, "bytes": 0}  # of a run that was stopped before its first checkpoint
# Of the process that measures them, and measured anew after some steps.
NOT_KEPT = {"time", "data_time", "eta_seconds", "images_per_second", "memory_gib"}


def history_state(storage: EventStorage, metrics_file: Path, last_written: int) -> History:
    """What `restore_history` needs.

    Args:
        last_written: the iteration at which the writers have last written.
    """
    hints, latest = storage.smoothing_hints(), storage.latest()
    scalars = {
        name: {
            "smoothed": hints[name],
            "written": latest[name][1] <= last_written,
            "values": [[value, int(i)] for value, i in history.values()[-WINDOW:]],
        }
        for name, history in storage.histories().items()
        if name in latest and name not in NOT_KEPT
    }
    size = metrics_file.stat().st_size if metrics_file.exists() else 0
    return {"scalars": scalars, "bytes": size}


def restore_history(storage: EventStorage, metrics_file: Path, state: History) -> None:
    """Put the values back into a new storage, and cut `metrics_file` to the length that it had."""
    iteration = storage.iter
    for name, scalar in state["scalars"].items():
        for value, i in scalar["values"]:
            storage.iter = i
            storage.put_scalar(name, value, smoothing_hint=scalar["smoothed"])
        if scalar["written"]:
            del storage.latest()[name]  # the writers would write it again
    storage.iter = iteration
    if metrics_file.exists() and metrics_file.stat().st_size > state["bytes"]:
        os.truncate(metrics_file, state["bytes"])
