"""Videos: one to be read, and those of a data set for several processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.utils import comm
from torch.utils.data import Sampler

from dformer.data.video import FrameReader
from dformer.visualize.files import VideoReader


def open_video(source: str | Path | int, every: int = 1) -> VideoReader | FrameReader:
    """Open a video file, a folder of frames or a camera; return its reader."""
    if not isinstance(source, int) and Path(source).is_dir():
        return FrameReader(source, every)
    return VideoReader(source, every)


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
