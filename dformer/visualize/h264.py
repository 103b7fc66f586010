"""Videos that browsers play: H.264, by the program ffmpeg or by PyAV; OpenCV's wheels have no encoder for it."""

import shutil
import subprocess
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

from dformer.visualize.arrays import UInt8


def has_h264() -> bool:
    """Return whether the program ffmpeg or the package av is there."""
    return shutil.which("ffmpeg") is not None or _has_av()


def open_h264(file: Path, fps: float, width: int, height: int) -> "FFmpegWriter | PyAVWriter | None":
    """Open an .mp4 file for frames of this size; None where there is neither ffmpeg nor the package av."""
    if shutil.which("ffmpeg") is not None:
        return FFmpegWriter(file, fps, width, height)
    return PyAVWriter(file, fps, width, height) if _has_av() else None


def _has_av() -> bool:
    spec = find_spec("av")
    return spec is not None and spec.origin is not None  # not a folder of this name


class FFmpegWriter:
    """Write frames to an .mp4 file as `cv2.VideoWriter` does, by ffmpeg; sides are cut to even numbers."""

    def __init__(self, file: Path, fps: float, width: int, height: int) -> None:
        source = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        # 4:2:0 is what browsers play; the index comes first, so that a page plays it while it loads.
        coded = ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags"]
        command = ["ffmpeg", "-y", "-loglevel", "error", *source, *coded, "+faststart", "-f", "mp4", str(file)]
        # In a session of its own, Ctrl-C does not end it before the frames so far are written.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        """Return whether ffmpeg runs."""
        return self.process.poll() is None

    def write(self, frame: UInt8) -> None:
        """Add a frame (height, width, 3), BGR; raise OSError if ffmpeg has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(frame.tobytes())

    def release(self) -> None:
        """End the file."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        finally:
            self.process.wait()


class PyAVWriter:
    """Write frames to an .mp4 file as `FFmpegWriter` does, by the package av."""

    def __init__(self, file: Path, fps: float, width: int, height: int) -> None:
        import av

        self.container = av.open(str(file), "w", format="mp4", options={"movflags": "faststart"})
        self.stream = self.container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self.stream.width, self.stream.height = width // 2 * 2, height // 2 * 2
        self.stream.pix_fmt = "yuv420p"

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        """Return True: a file that cannot be written is an error of `__init__`."""
        return True

    def write(self, frame: UInt8) -> None:
        """Add a frame (height, width, 3), BGR."""
        import av

        cut = frame[: self.stream.height, : self.stream.width]
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(cut.copy(), format="bgr24")))

    def release(self) -> None:
        """End the file."""
        self.container.mux(self.stream.encode())
        self.container.close()
