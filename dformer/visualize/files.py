"""Files of pictures and videos. Pictures and frames are uint8 (H, W, 3) in RGB."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dformer.utils.errors import UserError
from dformer.utils.files import atomic_write
from dformer.visualize.arrays import UInt8
from dformer.visualize.h264 import open_h264

logger = logging.getLogger(__name__)

# Pillow's options for each format of pictures.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"compress_level": 1},  # the default, 6, takes as long as model and drawing together
    ".jpg": {"quality": 90},
    ".webp": {"quality": 75},
}
# OpenCV's wheels can write these without a system codec. H.264 is not among them: without ffmpeg or PyAV, browsers play
# only the .webm.
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
DEFAULT_FPS = 25.0  # where a source does not know its own


def save_picture(picture: UInt8, file: Path) -> None:
    """Write a picture, whole or not at all, in the format of the file's suffix, one of FORMATS."""
    with atomic_write(file) as partial:
        Image.fromarray(picture).save(partial, **FORMATS[file.suffix.lower()])


def save_animation(frames: Iterable[UInt8], file: str | Path, fps: float) -> None:
    """Write frames of one size, whole or not at all: a GIF or WebP that repeats, or a video, by the file's suffix."""
    file = Path(file)
    duration = round(1000 / fps)
    if file.suffix.lower() == ".gif":
        first, *others = (Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames)
        with atomic_write(file) as partial:
            first.save(partial, save_all=True, append_images=others, duration=duration, loop=0)
    elif file.suffix.lower() == ".webp":
        first, *others = map(Image.fromarray, frames)
        with atomic_write(file) as partial:
            options = FORMATS[".webp"]
            first.save(partial, save_all=True, append_images=others, duration=duration, loop=0, **options)
    else:
        with VideoWriter(file, fps) as video:
            for frame in frames:
                video.write(frame)


class VideoReader:
    """Read every n-th frame of a video file or of a camera, given by its number; use it in a `with` statement.

    `fps` are the source's frames per second, `length` is the number of frames to be read according to the file's
    header, None for a camera. A source that cannot be opened is a UserError.
    """

    def __init__(self, source: str | Path | int, every: int = 1) -> None:
        self.every = every
        is_camera = isinstance(source, int)
        self.capture = cv2.VideoCapture(source if is_camera else str(source))
        if not self.capture.isOpened():
            raise UserError(
                f"camera {source} cannot be opened: is it connected, and used by no other program?"
                if is_camera
                else f"video {source} cannot be read: it is missing, damaged, or in a format that OpenCV cannot read"
            )
        self.fps = self.capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = -(-count // every) if count > 0 and not is_camera else None
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, UInt8]]:
        """Yield the number in the source, from 0, and the frame. Skipped frames are not decoded."""
        index = 0
        while self.capture.grab():
            if index % self.every == 0:
                is_decoded, frame = self.capture.retrieve()
                if not is_decoded:
                    return
                yield index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.release()


class VideoWriter:
    """Write a video file; use it in a `with` statement, at the end of which the file appears.

    The suffix, one of CODECS, selects the format; `frames` counts what was written so far. KeyboardInterrupt ends the
    video: the frames so far are kept. After any other error, or without frames, nothing is written.
    """

    def __init__(self, file: str | Path, fps: float) -> None:
        self.file = Path(file)
        self.fps = fps
        self.frames = 0
        self._stack = ExitStack()
        self._writer: Any = None
        if self.file.suffix.lower() not in CODECS:
            raise UserError(f"{file}: the suffix of a video must be one of {', '.join(CODECS)}")

    def write(self, frame: UInt8) -> None:
        """Add a frame. An odd last row or column is cut off, as codecs need even sizes.

        One of another size than the first is scaled to fit into it, with black around.
        """
        if self._writer is None:
            self._partial = self._stack.enter_context(atomic_write(self.file, keep_interrupted=True))
            height, width = frame.shape[:2]
            if self.file.suffix.lower() == ".mp4":
                self._writer = open_h264(self._partial, self.fps, width, height)
            if self._writer is None:
                if self.file.suffix.lower() == ".mp4":
                    _log_mp4v()
                codec = cv2.VideoWriter.fourcc(*CODECS[self.file.suffix.lower()])
                self._writer = cv2.VideoWriter(str(self._partial), codec, self.fps, (width, height))
            self._stack.push(self._close)
            if not self._writer.isOpened():
                raise UserError(f"{self.file} cannot be written")
            self._size = frame.shape[:2]
        if frame.shape[:2] != self._size:
            frame = _fitted(frame, self._size)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _close(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._writer.release()
        if kind is None or issubclass(kind, KeyboardInterrupt):
            try:
                with VideoReader(self._partial) as written:
                    next(iter(written))
            except (UserError, StopIteration) as error:
                raise OSError("is the disk full?") from error  # OpenCV ignores errors of writing

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


@cache
def _log_mp4v() -> None:
    """Say once what browsers need."""
    logger.warning(
        "The .mp4 is written with the codec mp4v, which browsers do not play; they play H.264, for which install the "
        "program ffmpeg, or PyAV: pip install 'dformer[video]'"
    )


def _fitted(frame: UInt8, size: tuple[int, ...]) -> UInt8:
    """Scale a frame to fit into a size, in its upper left corner."""
    scale = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = (max(1, round(scale * side)) for side in frame.shape[:2])
    fitted = np.zeros((*size, 3), np.uint8)
    fitted[:height, :width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return fitted
