"""The training of the faults: a tiny DFormer on eight images, 12 steps, a checkpoint every other step.

`torchrun ... -m tests.faults.training <data> <output> <workers>` for many processes; `launch` for one.
"""

import os
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from dformer.apps import shapes as shapes_data
from dformer.d2.data import register_shapes
from dformer.d2.engine import trainer
from dformer.d2.engine.launch import launch
from dformer.d2.engine.run import run
from dformer.utils.errors import exit_on_user_error
from tests.d2.tiny import tiny_cfg

STEPS = 12
LOG_PERIOD = 5  # no divisor of the checkpoints' period


def make_data(root: Path) -> None:
    shapes_data.generate(root, shapes_data.Parameters(train=8, val=2, size=64), progress=False)


def configure(data: str, output: str, workers: int) -> CfgNode:
    """Return the cfg of the training on images of `make_data`."""
    if "faults_train" not in DatasetCatalog.list():
        register_shapes(data, "faults")
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("faults_train",), ()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.WARMUP_ITERS = STEPS, 2, 2
    cfg.MODEL.EMA_DECAY = 0.9
    cfg.DETERMINISTIC = True
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.OUTPUT_DIR = output
    return cfg


def train(data: str, output: str, workers: int, resume: bool = False) -> None:
    """Train to the last step, as tools/train_net.py does."""
    trainer.LOG_PERIOD = LOG_PERIOD
    launch(run, (configure(data, output, workers), resume), device="cpu")


@exit_on_user_error
def child(log: str, data: str, output: str, workers: int, resume: bool) -> None:
    """Run `train` in a process with its output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    train(data, output, workers, resume)


if __name__ == "__main__":
    data, output, workers = sys.argv[1:]
    exit_on_user_error(train)(data, output, int(workers))
