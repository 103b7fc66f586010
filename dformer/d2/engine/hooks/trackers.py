"""Experiment trackers, for the numbers of a training: W&B and MLflow. One more is a function in `TRACKERS`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from dformer.utils.errors import UserError, did_you_mean


class Tracker(NamedTuple):
    """Hold the id of a tracker's run, and the functions that log scalars at an iteration and that end the run."""

    run_id: str
    log: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def _wandb(cfg: CfgNode, run_id: str | None) -> Tracker:
    import wandb

    run = wandb.init(
        project=cfg.TRACKING.PROJECT,
        name=Path(cfg.OUTPUT_DIR).name,
        dir=cfg.OUTPUT_DIR,
        config=yaml.safe_load(cfg.dump()),
        id=run_id,
        resume="allow",
    )
    return Tracker(run.id, lambda scalars, iteration: run.log(scalars, step=iteration), run.finish)


def _mlflow(cfg: CfgNode, run_id: str | None) -> Tracker:
    import mlflow

    mlflow.set_experiment(cfg.TRACKING.PROJECT)
    run = mlflow.start_run(run_id=run_id, run_name=Path(cfg.OUTPUT_DIR).name)
    mlflow.log_text(cfg.dump(), "config.yaml")  # parameters are limited in length, and cannot change in a resumed run
    return Tracker(
        run.info.run_id, lambda scalars, iteration: mlflow.log_metrics(scalars, step=iteration), mlflow.end_run
    )


TRACKERS: dict[str, Callable[[CfgNode, str | None], Tracker]] = {"wandb": _wandb, "mlflow": _mlflow}


class TrackerWriter(EventWriter):
    """Write the scalars of a training to a tracker of TRACKING.WRITERS; a resumed training continues its run."""

    def __init__(self, name: str, cfg: CfgNode, window: int) -> None:
        if name not in TRACKERS:
            raise UserError(
                f'TRACKING.WRITERS: "{name}"{did_you_mean(name, TRACKERS)}; there are {", ".join(TRACKERS)}'
            )
        file = Path(cfg.OUTPUT_DIR) / run_file(name)
        try:
            self.tracker = TRACKERS[name](cfg, file.read_text() if file.exists() else None)
        except ModuleNotFoundError as error:
            raise UserError(f'TRACKING.WRITERS: "{name}" needs its package: pip install "dformer[{name}]"') from error
        file.write_text(self.tracker.run_id)
        self.window = window
        self.last = -1  # iteration

    def write(self) -> None:
        """Write what is new since the last call."""
        storage = get_event_storage()
        new = storage.latest_with_smoothing_hint(self.window).items()
        scalars = {name: float(value) for name, (value, iteration) in new if iteration > self.last}
        if scalars:
            self.last = storage.iter
            self.tracker.log(scalars, storage.iter)

    def close(self) -> None:
        self.tracker.close()


def run_file(name: str) -> str:
    """Return the name of the file in OUTPUT_DIR with the id of a tracker's run."""
    return f"{name}_run"
