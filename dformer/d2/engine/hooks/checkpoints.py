"""Checkpoints of a training: the periodic ones, the best and the last."""

import logging
import math
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from dformer.d2.checkpoint.checkpointer import BEST, Checkpointer
from dformer.utils.errors import UserError

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Save model_<iteration>.pth each SOLVER.CHECKPOINT_PERIOD, and model_final.pth, in the main process.

    There is also a checkpoint before each evaluation, as this may fail, and one after, so that it is not repeated. Must
    be the last hook: a checkpoint says that everything in its iteration is done.
    """

    def __init__(self, checkpointer: Checkpointer, cfg: CfgNode) -> None:
        self.checkpointer = checkpointer
        self.periods = [period for period in (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) if period > 0]
        self.keep = cfg.SOLVER.CHECKPOINT_KEEP
        self.patience = cfg.TEST.PATIENCE
        self.best: float | None = None  # the highest metric of an evaluation
        self.since_best = 0  # evaluations
        self.saved = -1  # the last iteration that was saved
        self._numbered: list[Path] = []  # of this run, the newest last

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            self._numbered = self.checkpointer.numbered()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpointer.save("model_final", iteration=self.trainer.iter)
        elif any(done % period == 0 for period in self.periods):
            self.try_to_save()

    def try_to_save(self) -> None:
        """Save the model, or log an error if it cannot be written now, as the next attempt may succeed."""
        try:
            self.save()
        except UserError as error:
            logger.error(f"{error}. Training continues; earlier checkpoints are intact")

    def save(self) -> None:
        """Save under the number of the iteration, and remove all but the newest checkpoints."""
        if not self.checkpointer.save_to_disk:
            return
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name, iteration=self.trainer.iter)
        self.saved = self.trainer.iter
        path = Path(self.checkpointer.save_dir, f"{name}.pth")
        self._numbered = [*(other for other in self._numbered if other != path), path]
        if self.keep > 0:
            for old in self._numbered[: -self.keep]:
                old.unlink(missing_ok=True)
            self._numbered = self._numbered[-self.keep :]

    def save_best(self, value: float) -> None:
        """Save model_best.pth if `value` exceeds all earlier ones."""
        self.since_best += 1
        if value > (-math.inf if self.best is None else self.best):
            self.best, self.since_best = value, 0
            try:
                self.checkpointer.save(BEST, iteration=self.trainer.iter)
            except UserError as error:
                logger.error(f"{error}. Training continues")

    @property
    def is_patience_exhausted(self) -> bool:
        """Tell whether TEST.PATIENCE evaluations were no better than the best before them."""
        return 0 < self.patience <= self.since_best

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.since_best = state["best"], state.get("since_best", 0)  # older checkpoints have none
