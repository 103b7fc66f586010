"""Training, in one process or in each process of a group."""

import logging
import math
import re
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dformer.d2.checkpoint.checkpointer import Checkpointer
from dformer.d2.config.device import amp_dtype
from dformer.d2.data import build_train_loader
from dformer.d2.data.unreadable import count_unreadable
from dformer.d2.engine.hooks.checkpoints import Checkpoints, Writers
from dformer.d2.engine.hooks.history import NO_HISTORY, History, history_state, restore_history
from dformer.d2.engine.hooks.pictures import Pictures
from dformer.d2.engine.hooks.writers import bound_history, writers
from dformer.d2.engine.interruption import RESUME_ME, Interruption
from dformer.d2.engine.nonfinite import bad_gradients, running_statistics, save_for_replay, trace
from dformer.d2.engine.optimizer import build_optimizer, build_schedule, clip_gradients, set_learning_rate
from dformer.d2.engine.provenance import write_record
from dformer.d2.evaluation.evaluate import Results, evaluate, headline
from dformer.utils import rng
from dformer.utils.ema import MovingAverage

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations
METRICS = "metrics.json"  # where Detectron2's writer has the logged numbers
MAX_BAD_STEPS = 10  # steps in a row without a usable gradient, after which training stops


class Trainer(TrainerBase):
    """Detectron2's training loop and hooks around our step.

    Not its DefaultTrainer: that builds its own step and checkpointer, and its 0.5 saves no optimizer state.

    Attributes:
        model: the module itself, also where a DistributedDataParallel runs it in training.
        average: the moving average of its weights; None without MODEL.EMA_DECAY.
        results: of the last evaluation, see `evaluate`.
        train_seconds: time in training steps (with waiting for data, without evaluation), resumed runs included.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.amp_dtype = amp_dtype(cfg)
        self.model = build_model(cfg)
        self.optimizer = build_optimizer(cfg, self.model)
        self.schedule = build_schedule(cfg)
        self.data_loader = build_train_loader(cfg)
        # Gradients of fp16 underflow without a scale; disabled, the scaler hands everything through.
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.replica = self.model if comm.get_world_size() == 1 else self._replicate()
        self.average = MovingAverage(self.model, cfg.MODEL.EMA_DECAY) if cfg.MODEL.EMA_DECAY > 0 else None
        averaged = {"model_ema": self.average} if self.average else {}
        self.checkpointer = Checkpointer(self.model, cfg, trainer=weakref.proxy(self), **averaged)
        self.checkpoints = Checkpoints(self.checkpointer, cfg)
        self.interruption = Interruption()
        self.is_stopping = False  # as all processes do
        self.is_evaluation_due = False  # the last step is done, its evaluation is not
        self.history: History | None = None  # of the run that is resumed
        self.results: Results = {}
        self.train_seconds = 0.0
        self.bad_steps = 0
        self.running_statistics = running_statistics(self.model)
        self.register_hooks(self._build_hooks())

    def _replicate(self) -> nn.Module:
        device_ids = [comm.get_local_rank()] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=device_ids, broadcast_buffers=False)

    def _build_hooks(self) -> list[HookBase | None]:
        is_main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
            hooks.CallbackHook(before_train=lambda line: write_record(line.cfg, line.start_iter)) if is_main else None,
            Pictures(self.cfg) if is_main and self.cfg.VIS_PERIOD else None,
            # After the evaluation, to write what it measured.
            Writers(writers(self.cfg), LOG_PERIOD) if is_main else None,
            self.checkpoints,
        ]

    def _evaluate(self) -> Mapping[str, Any]:
        """Evaluate the model, or its moving average where there is one, with what is done so far on the disk."""
        if self.iter < self.max_iter:  # else it is by now
            self.is_evaluation_due = True
            self.checkpoints.try_to_save()
            if self.is_stopping:
                self._stop()
        comm.synchronize()
        if comm.get_world_size() > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():  # statistics of batch norms differ, and those of process 0 are saved
                    dist.broadcast(buffer, 0)
        with self.interruption.at_once(), self.average.applied(self.model) if self.average else nullcontext():
            self.results = evaluate(self.cfg, self.model)
        self.is_evaluation_due = False
        if self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            self._keep_best()
        return self.results if len(self.results) != 1 else next(iter(self.results.values()))

    def _keep_best(self) -> None:
        chosen = self.cfg.TEST.BEST_METRIC
        measured = headline(next(iter(self.results.values()), {}))
        names = [name for name in ([chosen] if chosen else ["PQ", "AP", "mIoU"]) if measured.get(name) is not None]
        if names:
            self.checkpoints.keep_best(measured[names[0]])
        else:
            logger.warning(f'no model_best.pth is kept: TEST.BEST_METRIC "{chosen}" was not measured')

    def resume_or_load(self, resume: bool) -> None:
        """Go on from the last whole checkpoint in OUTPUT_DIR, or load MODEL.WEIGHTS and begin at iteration 0."""
        path = self.checkpointer.newest() if resume else ""
        if resume and not path:
            self.history = NO_HISTORY
        checkpoint = self.checkpointer.load(path or self.cfg.MODEL.WEIGHTS, checkpointables=None if path else [])
        if self.average and not (path and "model_ema" in checkpoint):
            self.average.restart(self.model)
        self.start_iter: int = self.iter + 1 if path else 0

    def train(self) -> None:
        """Train up to MAX_ITER, then evaluate.

        Raises:
            SystemExit: with the code `RESUME_ME`; a signal asked for it, and the last step is saved.
        """
        self.model.train()
        self.model.iteration = self.start_iter  # seeds the model's noise, and counts on by itself
        self.data_loader.start = self.start_iter
        self.batches = count_unreadable(self.data_loader, self.cfg.DATALOADER.MAX_UNREADABLE)
        with self.interruption:
            try:
                super().train(self.start_iter, self.max_iter)
            except SystemExit:
                done = min(self.iter, self.max_iter - 1)
                logger.info(f"Stopped after iteration {done}, which is saved; --resume goes on (exit code {RESUME_ME})")
                raise

    def before_train(self) -> None:
        """With what the run had logged, and the evaluation that it had not come to."""
        bound_history(self.storage)
        if self.history is not None and comm.is_main_process():
            restore_history(self.storage, Path(self.cfg.OUTPUT_DIR) / METRICS, self.history)
        super().before_train()
        if self.is_evaluation_due:
            self.iter = self.storage.iter = self.start_iter - 1
            self.after_step()

    def after_step(self) -> None:
        """Hooks, and the end where a signal has asked for it."""
        super().after_step()
        if self.is_stopping:
            self._stop()

    def after_train(self) -> None:
        """The last evaluation, unless training failed or was stopped."""
        if self.iter >= self.max_iter:
            super().after_train()

    def _stop(self) -> NoReturn:
        """Leave all processes at once, with the step saved."""
        if self.checkpoints.saved != self.iter and self.iter + 1 < self.max_iter:
            self.checkpoints.save()
        comm.synchronize()  # the first that leaves may end the others
        sys.exit(RESUME_ME)

    def run_step(self) -> None:
        """One update of the parameters, or none where a loss or a gradient is not finite.

        That is decided on means over all processes, so that all of them do the same.

        Raises:
            FloatingPointError: MAX_BAD_STEPS steps in a row were without an update.
        """
        start = time.perf_counter()
        rng.seed_all("step", self.cfg.SEED, comm.get_rank(), self.iter)
        statistics = [x.clone() for x in self.running_statistics]
        batch = next(self.batches)
        data_time = time.perf_counter() - start
        lr = set_learning_rate(self.optimizer, self.schedule(self.iter / self.max_iter))
        self.storage.put_scalar("lr", lr, smoothing_hint=False)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.replica(batch)
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.cfg, self.optimizer)
        wish = torch.tensor(float(self.interruption.wish is not None), device=self.device)
        measured = _means_over_processes(losses | {"grad_norm": grad_norm, "wish to stop": wish})
        self.is_stopping = measured.pop("wish to stop") > 0
        # With a scaler, gradients overflow now and then; it leaves that step out and lowers its scale by itself.
        bad = [
            name
            for name, value in measured.items()
            if not math.isfinite(value) and not (name == "grad_norm" and self.grad_scaler.is_enabled())
        ]
        if bad:
            self._count_bad_step(bad, batch)
            for x, before in zip(self.running_statistics, statistics, strict=True):
                x.copy_(before)
        else:
            self.bad_steps = 0
            self.grad_scaler.step(self.optimizer)
            if self.average:
                self.average.update(self.model)
            self._put_scalars(measured, data_time)
        self.grad_scaler.update()
        self.optimizer.zero_grad()  # now: memory is scarcest at the end of the next forward
        self.train_seconds += time.perf_counter() - start

    def _put_scalars(self, measured: dict[str, float], data_time: float) -> None:
        # The log line shows every name with "loss" in it: the layers before the last are for TensorBoard and JSON only.
        for name, value in measured.items():
            self.storage.put_scalar(re.sub(r"^loss_(\w+)_(\d+)$", r"layer_\2/\1", name), value)
        self.storage.put_scalar("total_loss", sum(value for name, value in measured.items() if "loss" in name))
        self.storage.put_scalar("data_time", data_time)

    def _count_bad_step(self, bad: list[str], batch: list[dict[str, Any]]) -> None:
        """Tell where the numbers come from; all processes do this, and stop, at the same step."""
        self.bad_steps += 1
        names = bad_gradients(self.model) if bad == ["grad_norm"] else ""  # after their mean over the processes
        found = [f"rank {comm.get_rank()}, {sentence}" for sentence in trace(self.cfg, self.model, batch)]
        what = f"not finite at iteration {self.iter}: {', '.join(bad)}" + (f" (gradients of {names})" if names else "")
        logger.warning(
            f"{what}; step left out ({self.bad_steps} in a row, training stops at {MAX_BAD_STEPS})\n  "
            + "\n  ".join(sum(comm.all_gather(found), []))
        )
        if self.bad_steps == MAX_BAD_STEPS:
            file = save_for_replay(self.cfg, self.model, batch, self.iter)
            raise FloatingPointError(
                f"{what}, and so for {MAX_BAD_STEPS} steps in a row. A lower SOLVER.BASE_LR, a longer "
                "SOLVER.WARMUP_ITERS or, with SOLVER.AMP, DTYPE bfloat16 often helps. "
                f"The last of them runs again with: python tools/replay.py {file}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the model."""
        seen = self.iter if self.is_evaluation_due else self.iter + 1  # steps that the writers have seen
        last_written = seen - 1 if seen == self.max_iter else seen // LOG_PERIOD * LOG_PERIOD - 1
        return super().state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "train_seconds": self.train_seconds,
            "is_evaluation_due": self.is_evaluation_due,
            "history": history_state(self.storage, Path(self.cfg.OUTPUT_DIR) / METRICS, last_written),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict["grad_scaler"]:  # else the run was in another precision
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.train_seconds = state_dict["train_seconds"]
        self.is_evaluation_due = state_dict["is_evaluation_due"]
        self.history = state_dict["history"]


def _means_over_processes(scalars: dict[str, Tensor]) -> dict[str, float]:
    """One collective and one copy to the host for all `scalars`, which have the same names in all processes."""
    values = torch.stack([value.detach().float() for value in scalars.values()])
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
        values /= comm.get_world_size()
    return dict(zip(scalars, values.tolist(), strict=True))
