"""Videos that browsers play: H.264, where the program ffmpeg is there; OpenCV's wheels have no encoder for it."""

import shutil
import subprocess
from pathlib import Path

from dformer.visualize.arrays import UInt8


def has_ffmpeg() -> bool:
    """Return whether the program ffmpeg is there."""
    return shutil.which("ffmpeg") is not None


class H264Writer:
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
