"""Data loaders, by Detectron2's samplers and workers."""

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)

from dformer.d2.data.datasets import get_metadata, loading
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.d2.data.unreadable import Needed, Replacing

Batch = list[dict[str, Any]]


def build_train_loader(cfg: CfgNode) -> Iterable[Batch]:
    """Endless loader of this process's share of `SOLVER.IMS_PER_BATCH` images; see `TrainMapper` for their contents.

    `DATALOADER.FILTER_EMPTY_ANNOTATIONS` leaves out images of instance sets without objects. In place of what cannot be
    read, other images are taken (see `Replacing`).

    Raises:
        UserError: a data set is not registered or cannot be loaded.
    """
    records = [r for name in cfg.DATASETS.TRAIN for r in _load(name, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)]
    dataset = DatasetFromList(records, copy=False)  # in one block of memory, which workers share
    mapper = Replacing(TrainMapper.from_config(cfg), dataset, cfg.DATALOADER.MAX_UNREADABLE)
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)


def build_test_loader(cfg: CfgNode, name: str) -> Iterable[Batch]:
    """Loader of this process's share of a data set, one image a batch; see `TestMapper` for its contents.

    Raises:
        UserError: the data set is not registered or cannot be loaded.
    """
    mapper = Needed(TestMapper.from_config(cfg))
    records = _load(name, filter_empty=False)
    return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def _load(name: str, filter_empty: bool) -> Batch:
    get_metadata(name)
    with loading(name):
        return get_detection_dataset_dicts(name, filter_empty=filter_empty)
