"""Data loaders, by Detectron2's samplers and workers."""

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts

from dformer.d2.data.datasets import get_metadata, loading
from dformer.d2.data.mappers import TestMapper, TrainMapper

Batch = list[dict[str, Any]]


def build_train_loader(cfg: CfgNode) -> Iterable[Batch]:
    """Endless loader of this process's share of `SOLVER.IMS_PER_BATCH` images; see `TrainMapper` for their contents.

    `DATALOADER.FILTER_EMPTY_ANNOTATIONS` leaves out images of instance sets without objects.

    Raises:
        UserError: a data set is not registered or cannot be loaded.
    """
    records = [r for name in cfg.DATASETS.TRAIN for r in _load(name, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)]
    return build_detection_train_loader(cfg, mapper=TrainMapper.from_config(cfg), dataset=records)


def build_test_loader(cfg: CfgNode, name: str) -> Iterable[Batch]:
    """Loader of this process's share of a data set, one image a batch; see `TestMapper` for its contents.

    Raises:
        UserError: the data set is not registered or cannot be loaded.
    """
    return build_detection_test_loader(
        _load(name, filter_empty=False), mapper=TestMapper.from_config(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def _load(name: str, filter_empty: bool) -> Batch:
    get_metadata(name)
    with loading(name):
        return get_detection_dataset_dicts(name, filter_empty=filter_empty)
