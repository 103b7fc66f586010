"""Videos: one to be read, and those of a data set for several processes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

from dformer.data.types import Record
from dformer.data.video import FrameReader, video_key
from dformer.utils import rng
from dformer.visualize.files import VideoReader


def open_video(source: str | Path | int, every: int = 1) -> VideoReader | FrameReader:
    """Open a video file, a folder of frames or a camera; return its reader."""
    if not isinstance(source, int) and Path(source).is_dir():
        return FrameReader(source, every)
    return VideoReader(source, every)


class FrameSampler(Sampler[int]):
    """Sample, after each frame that another sampler draws, others of its video: `num` neighbours, as a clip has them.

    Where a video has too few, or the record is of no video, frames come again.

    Args:
        sampler: this process's share of the endless stream of indices.
        records: of all frames; those of a video are together, in their order.
        num: frames of a clip.
        reach: how many records apart from the first they are at most.
        seed: of the choice.
    """

    def __init__(self, sampler: Iterable[int], records: Sequence[Record], num: int, reach: int, seed: int) -> None:
        self.sampler, self.num, self.reach, self.seed = sampler, num, reach, seed
        self.videos = [video_key(record) if "video_id" in record else None for record in records]

    def __iter__(self) -> Iterator[int]:
        for position, index in zip(count(comm.get_rank(), comm.get_world_size()), self.sampler):  # noqa: B905 (endless)
            around = range(max(0, index - self.reach), min(len(self.videos), index + self.reach + 1))
            same = [k for k in around if k != index and self.videos[k] == self.videos[index] is not None] or [index]
            draw = np.random.default_rng(rng.seed("clip", self.seed, position))
            yield index
            yield from draw.choice(same, self.num - 1, replace=len(same) < self.num - 1).tolist()


class VideoSampler(Sampler[int]):
    """Assign whole videos to processes: every world_size-th, its frames in their order.

    Args:
        videos: of each record, the name of its video.
    """

    def __init__(self, videos: Sequence[str]) -> None:
        names = list(dict.fromkeys(videos))[comm.get_rank() :: comm.get_world_size()]
        own = set(names)
        self.indices = [index for index, name in enumerate(videos) if name in own]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
