"""Hooks of the training loop."""

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks

from dformer.d2.checkpoint.checkpointer import BEST, Checkpointer
from dformer.utils.errors import UserError

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Writes model_<iteration>.pth each SOLVER.CHECKPOINT_PERIOD, and model_final.pth; in the main process.

    Around an evaluation there is a checkpoint, too: before, as evaluations fail in their own ways; after, as it need
    not be done again. To be the last hook, as a checkpoint says that all that belongs to its iteration is done.

    Attributes:
        best: what the best evaluation so far measured; None before the first.
        saved: the last iteration that was saved.
    """

    def __init__(self, checkpointer: Checkpointer, cfg: CfgNode) -> None:
        self.checkpointer = checkpointer
        self.periods = [period for period in (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) if period > 0]
        self.keep = cfg.SOLVER.CHECKPOINT_KEEP
        self.best: float | None = None
        self.saved = -1
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
        """Save; where that fails, for want of space or rights, tell it: the next one may succeed."""
        try:
            self.save()
        except UserError as error:
            logger.error(f"{error}. Training goes on; what was saved before is whole")

    def save(self) -> None:
        """Save under the number of the iteration, and remove what is not among the newest any more.

        Raises:
            UserError: the file cannot be written.
        """
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

    def keep_best(self, value: float) -> None:
        """Save model_best.pth, where an evaluation measured more than all before."""
        if value > (self.best if self.best is not None else float("-inf")):
            self.best = value
            try:
                self.checkpointer.save(BEST, iteration=self.trainer.iter)
            except UserError as error:
                logger.error(f"{error}. Training goes on")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


class Writers(hooks.PeriodicWriter):
    """Detectron2's, but for a run that stops early: it will go on, and write these values when it is their time."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
        else:
            for writer in self._writers:
                writer.close()
