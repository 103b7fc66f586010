"""Data loaders.

A training batch depends on `cfg`, its number and the process's rank alone: not on the number of workers, on what was
loaded before, or on whether the run was resumed.
"""

import gc
import os
import random
import signal
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dformer.d2.data.datasets import get_records
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.d2.data.unreadable import map_or_replace, map_or_stop
from dformer.d2.data.video import FrameSampler, VideoSampler
from dformer.data.coco_format import image_size
from dformer.data.packed import PackedList, pack
from dformer.utils import groups, rng
from dformer.utils.errors import UserError, did_you_mean
from dformer.utils.processes import SIGNALS

Batch = list[dict[str, Any]]  # images
Records = Sequence[dict[str, Any]]
Draw = tuple[int, int]  # position in the endless stream of images; index of the record drawn there

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class TrainLoader(DataLoader):
    """Load a process's training batches, endlessly, from batch `batch_sampler.start` on."""

    batch_sampler: "BatchStream"


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Build the endless loader of this process's share of `SOLVER.IMS_PER_BATCH` images; see `TrainMapper`.

    `DATALOADER.FILTER_EMPTY_ANNOTATIONS` drops images of instance sets without objects. With
    `DATALOADER.ASPECT_RATIO_GROUPING`, all images of a batch are wider than high, or none is. Other images replace
    those that cannot be read (see `map_or_replace`).

    Its workers are forked here. Build it before the model, whose pages would be copied for each of them.

    Raises:
        UserError: a data set is not registered or cannot be loaded, or there is no such sampler.
    """
    records = share_records(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    seed = cfg.SEED if cfg.SEED >= 0 else groups.all_gather(random.getrandbits(31))[0]
    stream = BatchStream(
        _sampler(cfg, records, seed),
        cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        _orientation(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    num_workers = _num_workers(cfg)
    loader = TrainLoader(
        SeededImages(records, cfg, seed),
        batch_sampler=stream,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # of numbers that nothing uses: the global one draws the model's weights
        collate_fn=PinnableBatch,
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
        worker_init_fn=_start_worker,
    )
    iter(loader)  # starts the workers
    stream.start = 0
    return loader


def build_test_loader(cfg: CfgNode, name: str) -> Iterable[Batch]:
    """Build the loader of this process's share of a data set, one image a batch; see `TestMapper`.

    With TEST.WITH_TARGETS the targets of training come with the images, see `TrainMapper`.

    Raises:
        UserError: the data set is not registered or cannot be loaded.
    """
    mapper = TrainMapper.for_test(cfg) if cfg.TEST.WITH_TARGETS else TestMapper.from_config(cfg)
    records = get_records(name, partial(get_detection_dataset_dicts, filter_empty=False))
    is_video = bool(records) and "video_id" in records[0]
    loader = build_detection_test_loader(
        records,
        mapper=partial(map_or_stop, mapper=mapper),
        sampler=VideoSampler([record["video_id"] for record in records]) if is_video else None,
        num_workers=_num_workers(cfg),
    )
    loader.worker_init_fn = _start_worker
    return loader


def _num_workers(cfg: CfgNode) -> int:
    # Each is forked from a process that holds a model. Those without a core would cost time and memory at the start.
    return min(cfg.DATALOADER.NUM_WORKERS, groups.share_of_cores())


def share_records(names: Sequence[str], filter_empty: bool) -> Records:
    """Load the records of data sets once a node, and return them in memory that all processes of the node share.

    `filter_empty` drops images of instance sets without objects.

    Raises:
        UserError: a data set is not registered or cannot be loaded.
    """
    load = partial(get_detection_dataset_dicts, filter_empty=filter_empty)

    def to_file() -> str:
        block = pack(chain.from_iterable(get_records(name, load) for name in names))
        try:
            with tempfile.NamedTemporaryFile(prefix="dformer-records-", delete=False) as file:
                file.write(block.data)
        except OSError as error:
            where = f"{tempfile.gettempdir()} (TMPDIR)"
            raise UserError(f"{where} has no {len(block) >> 20} MiB for the records: {error.strerror}") from error
        return file.name

    file = groups.once_a_node(to_file)
    records: Records = PackedList(np.memmap(file, np.uint8, mode="r"))  # stays mapped without its name
    groups.wait_for_all()
    Path(file).unlink(missing_ok=True)
    return records


class BatchStream(Sampler[list[Draw]]):
    """Sample the endless stream of this process's batches, with the positions of their images in the stream of all.

    Args:
        sampler: this process's share of the endless stream of indices: every world_size-th, from its rank on.
        group_of: group of an index; a batch has images of one group. None: there is one group.

    Attributes:
        start: number of batches to skip at the beginning of an iteration; None: all.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, group_of: Callable[[int], object] | None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.group_of = group_of or (lambda index: None)
        self.start: int | None = None

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(()) if self.start is None else islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[Draw]]:
        groups: dict[object, list[Draw]] = defaultdict(list)
        for position, index in zip(count(comm.get_rank(), comm.get_world_size()), self.sampler):  # noqa: B905 (endless)
            group = groups[self.group_of(index)]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()


class SeededImages(Dataset[dict[str, Any]]):
    """Map records, with random augmentations seeded by `seed` and the position in the stream."""

    def __init__(self, records: Records, cfg: CfgNode, seed: int) -> None:
        self.records = records
        self.mapper = TrainMapper.from_config(cfg)
        self.max_unreadable = cfg.DATALOADER.MAX_UNREADABLE
        self.seed = seed
        self.past_maps: int = cfg.MODEL.PIX2SEQD.PAST_MAPS if cfg.INPUT.TARGET == "panoptic_map" else 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        position, index = draw
        with rng.seeded("image", self.seed, position):
            return map_or_replace(self._with_past(index), self.mapper, self.records, self.max_unreadable)

    def _with_past(self, index: int) -> dict[str, Any]:
        """A record; for models that see past maps, that of a frame with the frames before it, or None for each."""
        record = self.records[index]
        if not self.past_maps or "video_id" not in record:
            return record
        before = [self.records[k] if k >= 0 else {} for k in range(index - self.past_maps, index)]
        return {**record, "past": [r if r.get("video_id") == record["video_id"] else None for r in before]}


def _sampler(cfg: CfgNode, records: Records, seed: int) -> Iterable[int]:
    """Sample indices, endlessly: of images or, with INPUT.SAMPLING_FRAME_NUM above 1, of the frames of clips."""
    sampler, num = _image_sampler(cfg, records, seed), cfg.INPUT.SAMPLING_FRAME_NUM
    if num == 1:
        return sampler
    parts = comm.get_world_size() * cfg.SOLVER.ACCUMULATE
    if cfg.SOLVER.IMS_PER_BATCH % (num * parts):
        where = (
            f"each of {parts} parts of a step has a whole number of clips" if parts > 1 else "a step has whole clips"
        )
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; give a multiple of {num * parts}, so that {where} of "
            f"{num} frames (INPUT.SAMPLING_FRAME_NUM)"
        )
    return FrameSampler(sampler, records, num, cfg.INPUT.SAMPLING_FRAME_RANGE, seed)


def _image_sampler(cfg: CfgNode, records: Records, seed: int) -> Iterable[int]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise UserError(
        f'DATALOADER.SAMPLER_TRAIN is "{name}"{did_you_mean(name, SAMPLERS)} (one of {", ".join(SAMPLERS)})'
    )


def _orientation(records: Records) -> Callable[[int], bool]:
    """Whether an image is wider than high, by its index. Sizes not in the record are read from the file, once each."""

    @cache
    def is_wide(index: int) -> bool:
        try:
            height, width = image_size(records[index])
        except UserError:  # an unreadable image is handled where it is mapped
            return False
        return width > height

    return is_wide


class PinnableBatch(list[dict[str, Any]]):
    """Hold a batch whose tensors can be pinned, so that a GPU fetches them while the host goes on."""

    def pin_memory(self) -> "PinnableBatch":
        """Return the batch in pinned memory; a `DataLoader` calls it in a thread of its own."""
        return PinnableBatch({key: _pinned(x) for key, x in item.items()} for item in self)


def _pinned(x: Any) -> Any:
    match x:
        case Tensor():
            return x.pin_memory()
        case Boxes():
            return Boxes(x.tensor.pin_memory())
        case Instances():
            return Instances(x.image_size, **{name: _pinned(field) for name, field in x.get_fields().items()})
    return x


def _start_worker(_: int) -> None:
    """In a worker, ignore signals to all processes: the training process still needs its step's batches.

    SIGTERM ends the worker if it comes from the training process.
    """
    gc.freeze()  # a collection would write to, and so copy, the memory that is shared with the training process
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
