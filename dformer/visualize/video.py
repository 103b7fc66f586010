"""Videos, frame by frame: files and cameras in, files and animations out. Frames are uint8 (H, W, 3) in RGB."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dformer.utils.errors import UserError

Frame = NDArray[np.uint8]

# What OpenCV's wheels can write without a system codec. H.264 is not among it: browsers play the .webm.
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
FPS = 25.0  # where a source does not tell


class VideoReader:
    """The frames of a video file or of a camera; to be used in a `with` statement.

    Args:
        source: a file, or the number of a camera.
        every: frames from one that is read to the next.

    Attributes:
        fps: frames a second of the source.
        length: number of frames to be read as the file's header has it, or None for a camera.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str | Path | int, every: int = 1) -> None:
        self.source = source
        self.every = every
        is_camera = isinstance(source, int)
        self.capture = cv2.VideoCapture(source if is_camera else str(source))
        if not self.capture.isOpened():
            raise UserError(
                f"camera {source} cannot be opened: is it connected, and used by no other program?"
                if is_camera
                else f"video {source} cannot be read: it is missing, damaged, or of a format that OpenCV does not know"
            )
        self.fps = self.capture.get(cv2.CAP_PROP_FPS) or FPS
        count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = -(-count // every) if count > 0 and not is_camera else None

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        """Number in the source, from 0, and frame. Frames between those of interest are not decoded."""
        index = 0
        while self.capture.grab():
            if index % self.every == 0:
                is_there, frame = self.capture.retrieve()
                if not is_there:
                    return
                yield index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.release()


class VideoWriter:
    """A video file that appears when it is whole; to be used in a `with` statement.

    When an interruption (KeyboardInterrupt) ends it, the frames so far are kept, as a whole file. Any other error
    leaves nothing.

    Args:
        file: its suffix, one of `CODECS`, says what is written.
        fps: frames a second.

    Raises:
        UserError: there is no such format, or the file cannot be written.
    """

    def __init__(self, file: str | Path, fps: float) -> None:
        self.file = Path(file)
        self.fps = fps
        self.frames = 0
        self.partial = self.file.with_name(f".{self.file.stem}.partial{self.file.suffix}")
        self.writer: Any = None
        if self.file.suffix.lower() not in CODECS:
            raise UserError(f"{file}: videos are written as {', '.join(CODECS)}, not as {self.file.suffix or 'that'}")

    def write(self, frame: Frame) -> None:
        """Add a frame, of the size of the first. An odd last row or column is cut off, as codecs need even sizes."""
        if self.writer is None:
            codec = cv2.VideoWriter.fourcc(*CODECS[self.file.suffix.lower()])
            self.writer = cv2.VideoWriter(str(self.partial), codec, self.fps, (frame.shape[1], frame.shape[0]))
            if not self.writer.isOpened():
                raise UserError(f"{self.file} cannot be written")
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self.writer is not None:
            self.writer.release()
        try:
            if self.frames and (kind is None or issubclass(kind, KeyboardInterrupt)):
                with VideoReader(self.partial) as written:  # OpenCV does not tell when a disk is full
                    next(iter(written))
                os.replace(self.partial, self.file)
        except (OSError, StopIteration, UserError) as error:
            raise UserError(f"{self.file} cannot be written: is the disk full?") from error
        finally:
            self.partial.unlink(missing_ok=True)


def save_animation(frames: Iterable[Frame], file: str | Path, fps: float) -> None:
    """Write frames of one size as a GIF that repeats, or as a video, as the suffix of `file` says.

    Raises:
        UserError: it cannot be written, or there is no such format.
    """
    file = Path(file)
    if file.suffix.lower() != ".gif":
        with VideoWriter(file, fps) as video:
            for frame in frames:
                video.write(frame)
        return
    partial = file.with_name(f".{file.name}.partial")
    first, *others = (Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames)
    try:
        first.save(partial, "gif", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
