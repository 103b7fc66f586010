"""Training and evaluation of a cfg, in one process or in each process of a group."""

import json
import logging
import math
import re
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dformer.d2.bad_steps import bad_gradients, running_statistics, save_for_replay, trace
from dformer.d2.checkpointer import Checkpointer, fetch_checkpoint, load_weights
from dformer.d2.data import (
    build_test_loader,
    build_train_loader,
    check_datasets,
    model_classes,
    register_custom,
)
from dformer.d2.data.unreadable import count_unreadable, workers_explained
from dformer.d2.evaluation import build_evaluators, class_table, evaluate_saved, summary_table, write_csv, written_whole
from dformer.d2.observe import BoundedHistory, writers
from dformer.d2.optimizer import build_optimizer, build_schedule, clip_gradients, set_learning_rate
from dformer.d2.pictures import Pictures
from dformer.d2.precision import amp_dtype, inference_autocast
from dformer.d2.record import write_record
from dformer.d2.test_time_augmentation import augment, check_augmentation
from dformer.errors import UserError

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations
MAX_BAD_STEPS = 10  # steps in a row without a usable gradient, after which training stops

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # of data sets, tasks and metrics

# What results.json starts with, and where Detectron2's evaluators have it.
HEADLINE = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ_things": ("panoptic_seg", "PQ_th"),
    "PQ_stuff": ("panoptic_seg", "PQ_st"),
    "AP": ("segm", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
}


def check(cfg: CfgNode, eval_only: bool = False) -> None:
    """Find what is missing before anything heavy begins, such as what would stop the first evaluation.

    Raises:
        UserError: of `check_datasets`, `check_augmentation` or `build_evaluators`, or OUTPUT_DIR cannot be written to.
    """
    check_datasets(cfg, train=not eval_only)
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name at least one data set to evaluate on")
    check_augmentation(cfg)
    for name in cfg.DATASETS.TEST:
        build_evaluators(cfg, name, cfg.OUTPUT_DIR)  # which does not write yet
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR).close()
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written to: {error.strerror}") from error


@workers_explained()
def run(cfg: CfgNode, resume: bool = False, eval_only: bool = False, predictions: str | None = None) -> None:
    """Train and evaluate, or evaluate only; logs, checkpoints, metrics and results lie in OUTPUT_DIR after it.

    Args:
        resume: go on from the last checkpoint in OUTPUT_DIR where there is one, MODEL.WEIGHTS otherwise.
        eval_only: evaluate MODEL.WEIGHTS (or that last checkpoint).
        predictions: with `eval_only`, evaluate the predictions in this folder instead, see `evaluate_saved`.

    Raises:
        UserError: a value of the cfg, a checkpoint or OUTPUT_DIR cannot be used.
        FloatingPointError: see `Trainer.run_step`.
    """
    cfg = set_up(cfg, write_config=not eval_only)
    register_custom(cfg)
    train_seconds = None
    results: Results
    if eval_only and predictions:
        results = {name: evaluate_saved(cfg, name, predictions) for name in cfg.DATASETS.TEST}
    elif eval_only:
        model = build_model(cfg)
        checkpointer = Checkpointer(model, cfg)
        weights = checkpointer.get_checkpoint_file() if resume else ""
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise UserError("nothing to evaluate: give a checkpoint with MODEL.WEIGHTS <file>")
        load_weights(model, fetch_checkpoint(weights), weights, cfg.MODEL.WEIGHTS_STRICT)
        results = evaluate(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
        results, train_seconds = trainer.results, trainer.train_seconds
    if comm.is_main_process():
        report(cfg, results, train_seconds)


def set_up(cfg: CfgNode, write_config: bool) -> CfgNode:
    """Prepare this process: checks, loggers, seeds. Returns the cfg as it is run."""
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which cannot be shared by {world_size} processes"
        )
    cfg = DefaultTrainer.auto_scale_workers(cfg, world_size).clone()
    cfg.defrost()
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()  # drawn, but written down
    if write_config:
        cfg.MODEL.CLASSES, cfg.MODEL.THINGS = (list(each) for each in model_classes(cfg))
    slow_amp = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu"
    if slow_amp:
        cfg.SOLVER.AMP.ENABLED = False
    cfg.freeze()
    for name in ("detectron2", "fvcore", "dformer"):
        setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name=name)
    if write_config and comm.is_main_process():
        (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())
    seed_all_rng(cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    gpu = "" if torch.cuda.is_available() else " (no GPU found)"
    if slow_amp:
        logger.warning("training in float32: CPUs take about ten times as long in float16 (SOLVER.AMP.DTYPE)")
    logger.info(f"Processes: {world_size}, device: {cfg.MODEL.DEVICE}{gpu}, seed: {cfg.SEED}, output: {cfg.OUTPUT_DIR}")
    return cfg


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Run `model` on DATASETS.TEST. Returns, in the main process, the metrics: {data set: {task: {metric: value}}}.

    As a `Predictor` does it: on a GPU in the precision of SOLVER.AMP, with TEST.AUG where enabled. The predictions are
    saved in OUTPUT_DIR/inference/<data set>, whole or not at all.
    """
    results = OrderedDict()
    augmented = augment(cfg, model)
    for name in cfg.DATASETS.TEST:
        folder = Path(cfg.OUTPUT_DIR) / "inference" / name
        with written_whole(folder) as predictions, inference_autocast(cfg):
            evaluators = build_evaluators(cfg, name, predictions)
            results[name] = inference_on_dataset(augmented, build_test_loader(cfg, name), evaluators)
    return results


def report(cfg: CfgNode, results: Results, train_seconds: float | None) -> None:
    """Write results.json and results.csv, print the tables and say where everything lies."""
    first = next(iter(results.values()), {})
    content: dict[str, Any] = {
        name: first[task].get(metric) for name, (task, metric) in HEADLINE.items() if task in first
    }
    content |= {"train_seconds": train_seconds, "metrics": results}
    path = Path(cfg.OUTPUT_DIR) / "results.json"
    path.write_text(json.dumps(_without_nan(content), indent=2) + "\n")
    write_csv(path.with_suffix(".csv"), results)
    for name, metrics in results.items():
        print(f"\n{name}\n{class_table(metrics)}\n\n{summary_table(metrics)}")
    numbers = [f"{name} {content[name]:.1f}" for name in HEADLINE if content.get(name) is not None]
    logger.info(
        f"Done: {', '.join(numbers) or 'nothing was evaluated'}; results in {path} (.csv), predictions in inference/, "
        f"log, metrics.json, TensorBoard events and checkpoints in {cfg.OUTPUT_DIR}"
    )


def _without_nan(value: Any) -> Any:
    """Not-annotated metrics are NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


class Trainer(TrainerBase):
    """Detectron2's training loop and hooks around our step.

    Not its DefaultTrainer: that builds its own step and checkpointer, and its 0.5 saves no optimizer state.

    Attributes:
        model: the module itself, also where a DistributedDataParallel runs it in training.
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
        self.checkpointer = Checkpointer(self.model, cfg, trainer=weakref.proxy(self))
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
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        return [
            hooks.IterationTimer(),
            hooks.PeriodicCheckpointer(self.checkpointer, period) if is_main else None,
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
            BoundedHistory(),
            hooks.CallbackHook(before_train=lambda line: write_record(line.cfg, line.start_iter)) if is_main else None,
            Pictures(self.cfg) if is_main and self.cfg.VIS_PERIOD else None,
            # Last, to write what the evaluation measured.
            hooks.PeriodicWriter(writers(self.cfg), LOG_PERIOD) if is_main else None,
        ]

    def _evaluate(self) -> Mapping[str, Any]:
        if comm.get_world_size() > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():  # statistics of batch norms differ, and those of process 0 are saved
                    dist.broadcast(buffer, 0)
        self.results = evaluate(self.cfg, self.model)
        return self.results if len(self.results) != 1 else next(iter(self.results.values()))

    def resume_or_load(self, resume: bool) -> None:
        """Go on from the last checkpoint in OUTPUT_DIR, or load MODEL.WEIGHTS and begin at iteration 0."""
        resume = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        self.start_iter = self.iter + 1 if resume else 0

    def train(self) -> None:
        """Train up to MAX_ITER, then evaluate."""
        self.model.train()
        self.model.iteration = self.start_iter  # seeds the model's noise, and counts on by itself
        self.batches = count_unreadable(self.data_loader, self.cfg.DATALOADER.MAX_UNREADABLE)
        super().train(self.start_iter, self.max_iter)

    def run_step(self) -> None:
        """One update of the parameters, or none where a loss or a gradient is not finite.

        That is decided on means over all processes, so that all of them do the same.

        Raises:
            FloatingPointError: MAX_BAD_STEPS steps in a row were without an update.
        """
        start = time.perf_counter()
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
        measured = _means_over_processes(losses | {"grad_norm": grad_norm})
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
        return super().state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "train_seconds": self.train_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict["grad_scaler"]:  # else the run was in another precision
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.train_seconds = state_dict["train_seconds"]


def _means_over_processes(scalars: dict[str, Tensor]) -> dict[str, float]:
    """One collective and one copy to the host for all `scalars`, which have the same names in all processes."""
    values = torch.stack([value.detach().float() for value in scalars.values()])
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
        values /= comm.get_world_size()
    return dict(zip(scalars, values.tolist(), strict=True))
