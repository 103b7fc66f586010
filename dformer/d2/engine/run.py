"""A run from its cfg to its results: training and evaluation, or evaluation only."""

import errno
import logging
import math
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dformer.d2.checkpoint.checkpointer import Checkpointer, fetch_checkpoint, load_weights
from dformer.d2.config import config_text, read_yaml
from dformer.d2.data import check_datasets, model_classes, register_custom
from dformer.d2.data.datasets import images_per_class
from dformer.d2.data.unreadable import workers_explained
from dformer.d2.engine.lock import locked
from dformer.d2.engine.output import refuse_used, remove_training
from dformer.d2.engine.trainer import Trainer
from dformer.d2.evaluation import build_evaluators, evaluate_saved
from dformer.d2.evaluation.evaluate import HEADLINE, Results, evaluate, headline
from dformer.d2.evaluation.test_time_augmentation import check_augmentation
from dformer.metrics.summary import class_table, summary_table, write_csv
from dformer.utils import groups, rng
from dformer.utils.errors import UserError
from dformer.utils.files import atomic_write, write_json
from dformer.utils.memory import keep_pages

logger = logging.getLogger(__name__)


def check(cfg: CfgNode, eval_only: bool = False) -> list[str]:
    """Check data sets, annotations and OUTPUT_DIR before anything heavy begins, once a node; return warnings.

    The other processes learn the classes of the data sets from the one that has loaded them.
    """
    if not eval_only and sys.platform != "linux":
        raise UserError(f"training needs Linux, and this is {sys.platform}; inference, the demo and evaluation do not")
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name at least one data set to evaluate on")
    if not cfg.DATASETS.TRAIN and not (eval_only and cfg.MODEL.CLASSES):
        raise UserError("DATASETS.TRAIN is empty; name at least one data set: the first has the classes of the model")
    register_custom(cfg)
    names = {*cfg.DATASETS.TEST, *(() if eval_only else cfg.DATASETS.TRAIN)}

    def checked() -> tuple[list[str], dict[str, dict[str, Any]]]:
        warnings = check_datasets(cfg, train=not eval_only)
        check_augmentation(cfg)
        for name in cfg.DATASETS.TEST:
            build_evaluators(cfg, name, cfg.OUTPUT_DIR)  # does not write yet
        return warnings, {name: MetadataCatalog.get(name).as_dict() for name in names}

    warnings, found = groups.once_a_node(checked)
    for name, metadata in found.items():
        MetadataCatalog.get(name).set(**metadata)
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR).close()
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written to: {error.strerror}") from error
    return warnings


@workers_explained()
def run(
    cfg: CfgNode,
    resume: bool = False,
    eval_only: bool = False,
    predictions: str | None = None,
    overwrite: bool = False,
) -> None:
    """Train and evaluate, or evaluate only; write logs, checkpoints, metrics and results to OUTPUT_DIR.

    Args:
        resume: start from the last checkpoint in OUTPUT_DIR if there is one, otherwise from MODEL.WEIGHTS. Always so
            when torchrun has restarted this process after a failure.
        eval_only: evaluate MODEL.WEIGHTS (with `resume`, the last checkpoint).
        predictions: with `eval_only`, evaluate the predictions in this folder instead, see `evaluate_saved`.
        overwrite: remove what another training has written to OUTPUT_DIR, which is otherwise refused without `resume`.

    Raises:
        UserError: of `check` or `refuse_used`, or of what is built.
        FloatingPointError: see `Trainer.run_step`.
        SystemExit: with code `RESUME_ME` after a signal; a resumed run loses nothing.
    """
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    is_new = not (resume or eval_only)
    if is_new and not overwrite:
        groups.once_a_node(partial(refuse_used, cfg.OUTPUT_DIR))
    warnings = check(cfg, eval_only)
    with locked(cfg.OUTPUT_DIR) if comm.is_main_process() and not eval_only else nullcontext():
        if is_new and overwrite and comm.is_main_process():
            remove_training(cfg.OUTPUT_DIR)
        try:
            _run(cfg, resume, eval_only, predictions, warnings)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise UserError(
                f"writing to OUTPUT_DIR {cfg.OUTPUT_DIR} failed: {error.strerror}. Its checkpoints are intact: make "
                "room and continue with --resume"
            ) from error


def _run(cfg: CfgNode, resume: bool, eval_only: bool, predictions: str | None, warnings: Sequence[str]) -> None:
    cfg = set_up(cfg, write_config=not eval_only, resume=resume)
    for warning in warnings:
        logger.warning(warning)
    train_seconds = None
    if eval_only and predictions:
        results: Results = {name: evaluate_saved(cfg, name, predictions) for name in cfg.DATASETS.TEST}
    elif eval_only:
        model = build_model(cfg)
        weights = (Checkpointer(model, cfg).newest() if resume else "") or cfg.MODEL.WEIGHTS
        if not weights:
            raise UserError("MODEL.WEIGHTS is empty: give the checkpoint to evaluate with MODEL.WEIGHTS <file>")
        checkpoint = fetch_checkpoint(weights, averaged=cfg.MODEL.EMA_DECAY > 0)
        load_weights(model, checkpoint, weights, cfg.MODEL.WEIGHTS_STRICT)
        results = evaluate(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
        results, train_seconds = trainer.results, trainer.train_seconds
    if comm.is_main_process():
        _report(cfg, results, train_seconds)


def set_up(cfg: CfgNode, write_config: bool, resume: bool = False) -> CfgNode:
    """Prepare this process's memory, loggers and seeds, and return the cfg as it is run.

    Args:
        write_config: also complete the cfg with the model's classes and write OUTPUT_DIR/config.yaml.
        resume: take the seed that the last run in OUTPUT_DIR has drawn.
    """
    keep_pages()
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UserError(f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, no multiple of {world_size} processes")
    images, parts = cfg.SOLVER.IMS_PER_BATCH // world_size, cfg.SOLVER.ACCUMULATE
    if images % parts:
        raise UserError(
            f"SOLVER.ACCUMULATE is {parts}: IMS_PER_BATCH, {images} a process, has no such parts of one size"
        )
    cfg = DefaultTrainer.auto_scale_workers(cfg, world_size).clone()
    cfg.defrost()
    if cfg.SEED < 0:
        drawn = _seed_of_last_run(cfg) if resume and comm.is_main_process() else None
        cfg.SEED = groups.all_gather(random.getrandbits(31) if drawn is None else drawn)[0]
    if write_config:
        cfg.MODEL.CLASSES, cfg.MODEL.THINGS = (list(each) for each in model_classes(cfg))
        if cfg.MODEL.BOX_CRITERION.FEDERATED_CLASSES and not cfg.MODEL.BOX_CRITERION.CLASS_IMAGES:
            count = partial(images_per_class, cfg.DATASETS.TRAIN, len(cfg.MODEL.CLASSES))
            cfg.MODEL.BOX_CRITERION.CLASS_IMAGES = groups.once_a_node(count)
    slow_amp = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu"
    if slow_amp:
        cfg.SOLVER.AMP.ENABLED = False
    cfg.freeze()
    for name in ("detectron2", "fvcore", "dformer"):
        setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name=name)
    if write_config and comm.is_main_process():
        with atomic_write(Path(cfg.OUTPUT_DIR) / "config.yaml") as file:
            file.write_text(config_text(cfg))
    rng.seed_all("start", cfg.SEED)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not cfg.DETERMINISTIC
    # Some operations on GPUs have no deterministic form: PyTorch warns of them.
    torch.use_deterministic_algorithms(cfg.DETERMINISTIC, warn_only=True)
    if cfg.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if slow_amp:
        logger.warning("SOLVER.AMP is ignored: CPUs take about ten times as long in float16 (try DTYPE bfloat16)")
    gpu = "" if torch.cuda.is_available() else " (no GPU found)"
    logger.info(f"Processes: {world_size}, device: {cfg.MODEL.DEVICE}{gpu}, seed: {cfg.SEED}, output: {cfg.OUTPUT_DIR}")
    return cfg


def _seed_of_last_run(cfg: CfgNode) -> int | None:
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not path.exists():
        return None
    try:
        return int(read_yaml(path.read_text(), str(path))["SEED"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} has no SEED to continue with ({error}); give one, such as SEED 1") from error


def _report(cfg: CfgNode, results: Results, train_seconds: float | None) -> None:
    """Write results.json and results.csv, print the tables and log where all files are."""
    content: dict[str, Any] = headline(next(iter(results.values()), {}))
    content |= {"train_seconds": train_seconds, "metrics": results}
    path = Path(cfg.OUTPUT_DIR) / "results.json"
    write_json(path, _without_nan(content), indent=2)
    write_csv(path.with_suffix(".csv"), results)
    for name, metrics in results.items():
        print(f"\n{name}\n{class_table(metrics)}\n\n{summary_table(metrics)}")
    numbers = [f"{name} {content[name]:.1f}" for name in HEADLINE if name in content]
    logger.info(
        f"Done: {', '.join(numbers) or 'nothing was evaluated'}; results in {path} (.csv), predictions in inference/, "
        f"log, metrics.json, TensorBoard events and checkpoints in {cfg.OUTPUT_DIR}"
    )


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None: metrics that are not annotated."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
