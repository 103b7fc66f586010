"""Training, in one process or in each process of a group."""

import logging
import math
import re
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from dformer.d2.checkpoint.checkpointer import Checkpointer
from dformer.d2.config.device import amp_dtype
from dformer.d2.data import build_train_loader
from dformer.d2.data.unreadable import count_unreadable
from dformer.d2.engine.hooks.checkpoints import Checkpoints
from dformer.d2.engine.hooks.pictures import Pictures
from dformer.d2.engine.hooks.writers import Writers
from dformer.d2.engine.interruption import RESUME_ME, Interruption
from dformer.d2.engine.nonfinite import nonfinite_gradients, running_statistics, save_for_replay, trace
from dformer.d2.engine.optimizer import build_optimizer, build_schedule, clip_gradients, set_learning_rate
from dformer.d2.engine.provenance import write_provenance
from dformer.d2.evaluation.evaluate import Results, evaluate, headline
from dformer.d2.modeling.accumulation import accumulate_gradients
from dformer.layers.checkpointing import checkpoint_activations
from dformer.utils import groups, rng
from dformer.utils.ema import MovingAverage

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations
MAX_BAD_STEPS = 10  # steps in a row without a usable gradient, after which training stops


class EarlyStop(BaseException):  # Detectron2's loop logs an Exception as a failure
    """End the training loop, as evaluations get no better."""


class Trainer(TrainerBase):
    """Train the model of a cfg with Detectron2's training loop and hooks.

    Not a DefaultTrainer: that builds its own step and checkpointer, and saves no optimizer state in Detectron2 0.5.

    Attributes:
        model: the module itself, also where a DistributedDataParallel runs it.
        average: the moving average of its weights; None without MODEL.EMA_DECAY.
        results: of the last evaluation, see `evaluate`.
        train_seconds: time in training steps (including waiting for data, without evaluation) of all resumed runs.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.amp_dtype = amp_dtype(cfg)
        self.data_loader = build_train_loader(cfg)
        with nullcontext() if comm.is_main_process() else rng.SkipInit():
            self.model = build_model(cfg)
        if cfg.SOLVER.ACTIVATION_CHECKPOINTING:
            blocks = checkpoint_activations(self.model)
            logger.info(f"Activation checkpointing: {len(blocks)} blocks compute their activations twice")
        if cfg.SOLVER.COMPILE:
            self.model.compile_parts()
        self.optimizer = build_optimizer(cfg, self.model)
        self.schedule = build_schedule(cfg)
        # fp16 gradients underflow without a scale; a disabled scaler changes nothing.
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.replica = self.model
        if comm.get_world_size() > 1:
            device_ids = [torch.cuda.current_device()] if self.device.type == "cuda" else None
            self.replica = DistributedDataParallel(
                self.model,
                device_ids=device_ids,
                gradient_as_bucket_view=True,  # else the gradients are there twice
            )
            self.replica.broadcast_buffers = False  # now that all processes have parameters and buffers of the first
        self.average = MovingAverage(self.model, cfg.MODEL.EMA_DECAY) if cfg.MODEL.EMA_DECAY > 0 else None
        averaged = {"model_ema": self.average} if self.average else {}
        self.checkpointer = Checkpointer(self.model, cfg, trainer=weakref.proxy(self), **averaged)
        self.checkpoints = Checkpoints(self.checkpointer, cfg)
        self.writers = Writers(cfg, LOG_PERIOD)
        self.interruption = Interruption()
        self.is_stopping = False  # the same in all processes
        self.is_evaluation_due = False  # the last step is done, its evaluation is not
        self.results: Results = {}
        self.train_seconds = 0.0
        self.bad_steps = 0
        self.patience = timedelta(minutes=cfg.COLLECTIVE_TIMEOUT)
        self.running_statistics = running_statistics(self.model)
        self.register_hooks([hooks.IterationTimer(), hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)])
        if cfg.VIS_PERIOD and comm.is_main_process():
            self.register_hooks([Pictures(cfg)])
        self.register_hooks([self.writers, self.checkpoints])  # after the evaluation, whose metrics they write

    def resume_or_load(self, resume: bool) -> None:
        """Resume from the newest readable checkpoint in OUTPUT_DIR, or load MODEL.WEIGHTS and start at iteration 0."""
        path = self.checkpointer.newest() if resume else ""
        if resume and not path:
            self.writers.restart()
        if not path:
            self.model.initialize()
        checkpoint = self.checkpointer.load(path or self.cfg.MODEL.WEIGHTS, checkpointables=None if path else [])
        if self.average and not (path and "model_ema" in checkpoint):
            self.average.restart(self.model)
        self.start_iter: int = self.iter + 1 if path else 0
        if self.checkpoints.is_patience_exhausted:  # that run has ended early, and is only evaluated again
            self.max_iter = self.start_iter

    def train(self) -> None:
        """Train up to MAX_ITER, then evaluate. After a signal, save the last step and exit with `RESUME_ME`."""
        self.model.train()
        self.model.iteration = self.start_iter  # seeds the model's noise; the model counts on by itself
        self.data_loader.batch_sampler.start = self.start_iter
        self.batches = count_unreadable(self.data_loader, self.cfg.DATALOADER.MAX_UNREADABLE)
        with self.interruption:
            try:
                super().train(self.start_iter, self.max_iter)
            except EarlyStop:
                since = self.checkpoints.since_best
                logger.info(
                    f"Stopped early, after iteration {self.iter}: {since} evaluations were no better (PATIENCE)"
                )
            except SystemExit:
                done = min(self.iter, self.max_iter - 1)
                logger.info(f"Stopped after iteration {done}, which is saved; use --resume (exit code {RESUME_ME})")
                raise

    def before_train(self) -> None:
        """Run the hooks, and the evaluation that was due when the resumed run was stopped."""
        if comm.is_main_process():
            write_provenance(self.cfg, self.start_iter)
        super().before_train()
        if self.is_evaluation_due:
            self.iter = self.storage.iter = self.start_iter - 1
            self.after_step()

    def after_step(self) -> None:
        """Run the hooks, and exit if a signal has asked for it."""
        super().after_step()
        if self.checkpoints.is_patience_exhausted:
            self.checkpointer.save("model_final", iteration=self.iter)
            self.writers.close(is_done=True)
            raise EarlyStop
        if self.is_stopping:
            self._stop()

    def after_train(self) -> None:
        """Run the hooks, which evaluate, unless training failed or was stopped."""
        if self.iter >= self.max_iter:
            super().after_train()

    def _stop(self) -> NoReturn:
        if self.checkpoints.saved != self.iter and self.iter + 1 < self.max_iter:
            self.checkpoints.save()
        groups.wait_for_all()  # the first process that exits may end the others
        sys.exit(RESUME_ME)

    def _evaluate(self) -> Mapping[str, Any]:
        """Evaluate the model, or its moving average if there is one, after saving a checkpoint."""
        if self.iter < self.max_iter:  # otherwise it has been saved
            self.is_evaluation_due = True
            self.checkpoints.try_to_save()
            if self.is_stopping:
                self._stop()
        groups.wait_for_all()
        if comm.get_world_size() > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():  # batch norms differ by process; those of process 0 are saved
                    dist.broadcast(buffer, 0)
        averaged = self.average.applied(self.model) if self.average else nullcontext()
        with self.interruption.exit_immediately(), averaged:
            self.results = evaluate(self.cfg, self.model)
        self.is_evaluation_due = False
        if self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            self._save_best()
        self.checkpoints.since_best = groups.all_gather(self.checkpoints.since_best)[0]
        return self.results if len(self.results) != 1 else next(iter(self.results.values()))

    def _save_best(self) -> None:
        metric = self.cfg.TEST.BEST_METRIC
        measured = headline(next(iter(self.results.values()), {}))
        names = [name for name in ([metric] if metric else ["PQ", "PQ_agnostic", "AP", "mIoU"]) if name in measured]
        if names:
            self.checkpoints.save_best(measured[names[0]])
        else:
            logger.warning(f'model_best.pth is not saved: TEST.BEST_METRIC "{metric}" was not measured')

    def run_step(self) -> None:
        """Update the parameters once, unless a loss or a gradient, averaged over all processes, is not finite.

        Raises:
            FloatingPointError: MAX_BAD_STEPS steps in a row were without an update.
        """
        start = time.perf_counter()
        batch = next(self.batches)
        # Data are what a process hangs on most. Here it is named, while NCCL's collectives would abort without a word.
        groups.wait_for_all(self.patience)
        rng.seed_all("step", self.cfg.SEED, comm.get_rank(), self.iter)  # now: the first batch's loader draws, too
        statistics = [x.clone() for x in self.running_statistics]
        data_time = time.perf_counter() - start
        lr = set_learning_rate(self.optimizer, self.schedule(self.iter / self.max_iter))
        self.storage.put_scalar("lr", lr, smoothing_hint=False)
        measured = self._backward(batch)
        # With a scaler, gradients overflow now and then: it skips such a step and lowers its scale by itself.
        ignored = {"grad_norm"} if self.grad_scaler.is_enabled() else set()
        nonfinite = [name for name, x in measured.items() if not math.isfinite(x) and name not in ignored]
        if nonfinite:
            self._report_bad_step(nonfinite, batch)
            for x, before in zip(self.running_statistics, statistics, strict=True):
                x.copy_(before)
        else:
            self.bad_steps = 0
            self.grad_scaler.step(self.optimizer)
            if self.average:
                self.average.update(self.model)
            # The log line has every name with "loss" in it: losses of earlier layers only go to TensorBoard and JSON.
            for name, value in measured.items():
                self.storage.put_scalar(re.sub(r"^loss_(\w+)_(\d+)$", r"layer_\2/\1", name), value)
            self.storage.put_scalar("total_loss", sum(value for name, value in measured.items() if "loss" in name))
            self.storage.put_scalar("data_time", data_time)
        self.grad_scaler.update()
        self.optimizer.zero_grad()  # now, as memory is scarcest at the end of the next forward
        self.train_seconds += time.perf_counter() - start

    def _backward(self, batch: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the clipped gradients; return the losses and `grad_norm`, means over all processes."""
        autocast = torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

        def backward(loss: torch.Tensor) -> None:
            self.grad_scaler.scale(loss).backward()

        parts, statistics = self.cfg.SOLVER.ACCUMULATE, self.running_statistics
        losses = accumulate_gradients(self.model, self.replica, batch, parts, statistics, autocast, backward)
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.cfg, self.optimizer)
        received = torch.full((), float(self.interruption.received is not None), device=self.device)
        scalars = losses | {"grad_norm": grad_norm, "signal": received}  # the same names in all processes
        values = torch.stack([value.detach().float() for value in scalars.values()])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
            values /= comm.get_world_size()
        measured = dict(zip(scalars, values.tolist(), strict=True))
        self.is_stopping = measured.pop("signal") > 0
        return measured

    def _report_bad_step(self, nonfinite: list[str], batch: list[dict[str, Any]]) -> None:
        """Log where the numbers arise, and stop after MAX_BAD_STEPS; all processes do so at the same step."""
        self.bad_steps += 1
        names = nonfinite_gradients(self.model) if nonfinite == ["grad_norm"] else ""  # already means over processes
        rank = comm.get_rank()
        found = [f"rank {rank}, {sentence}" for sentence in trace(self.cfg, self.model, batch, rank)]
        what = f"not finite at iteration {self.iter}: {', '.join(nonfinite)}"
        what += f" (gradients of {names})" if names else ""
        logger.warning(
            f"{what}; step skipped ({self.bad_steps} in a row, training stops at {MAX_BAD_STEPS})\n  "
            + "\n  ".join(sum(groups.all_gather(found), []))
        )
        if self.bad_steps == MAX_BAD_STEPS:
            file = save_for_replay(self.cfg, self.model, batch, self.iter)
            raise FloatingPointError(
                f"{what}, for {MAX_BAD_STEPS} steps in a row. A lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or, "
                "with SOLVER.AMP, DTYPE bfloat16 often helps. "
                f"Run the last of these steps again with: dformer replay {file}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs in addition to the model."""
        return super().state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "train_seconds": self.train_seconds,
            "is_evaluation_due": self.is_evaluation_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict["grad_scaler"]:  # empty if the run had another precision
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.train_seconds = state_dict["train_seconds"]
        self.is_evaluation_due = state_dict["is_evaluation_due"]
