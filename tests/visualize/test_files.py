"""Files are read again after they were written; what an error or an interruption leaves."""

import logging
import shutil
from contextlib import nullcontext
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from dformer.utils.errors import UserError
from dformer.visualize import files
from dformer.visualize.files import CODECS, FORMATS, VideoReader, VideoWriter, save_animation, save_picture

WIDTH, HEIGHT = 64, 48


def frames(count: int) -> list[np.ndarray]:
    """Return frames whose red grows from left to right, and whose green grows with time; blue is 0."""
    made = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    made[..., 0] = np.linspace(0, 255, WIDTH)
    made[..., 1] = 20 * np.arange(count)[:, None, None]
    return list(made)


@pytest.mark.parametrize("suffix", FORMATS)
def test_pictures(tmp_path, suffix):
    save_picture(frames(1)[0], tmp_path / f"a{suffix.upper()}")
    with Image.open(tmp_path / f"a{suffix.upper()}") as picture:
        assert picture.format.lower()[:2] == suffix[1:3]
        assert np.abs(np.asarray(picture).astype(int) - frames(1)[0]).mean() < 6
    with pytest.raises(UserError, match=f"a{suffix}"):
        save_picture(frames(1)[0], tmp_path / "no folder" / f"a{suffix}")


@pytest.mark.parametrize("suffix", CODECS)
def test_videos(tmp_path, suffix):
    expected = frames(12)
    save_animation(expected, tmp_path / f"a{suffix}", fps=10)
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]
    with VideoReader(tmp_path / f"a{suffix}") as video:
        assert video.fps == pytest.approx(10) and video.length == 12
        read = list(video)
    assert [index for index, _ in read] == list(range(12))
    for (_, frame), whole in zip(read, expected, strict=True):
        assert frame.shape == whole.shape and np.abs(frame.astype(int) - whole).mean() < 6, "the order of colours too"
    with VideoReader(tmp_path / f"a{suffix}", every=5) as video:
        assert video.length == 3
        some = list(video)
    assert [index for index, _ in some] == [0, 5, 10]
    assert all((frame == read[index][1]).all() for index, frame in some)


@pytest.mark.parametrize("program", ["ffmpeg", "av"])
def test_with_ffmpeg_or_av_browsers_play_the_video(tmp_path, monkeypatch, program):
    if program == "av":
        pytest.importorskip("av")
        monkeypatch.setenv("PATH", "")
    elif shutil.which("ffmpeg") is None:
        pytest.skip("needs the program ffmpeg")
    save_animation([frame[:-1, :-1] for frame in frames(5)], tmp_path / "a.mp4", fps=10)  # of odd sides, too
    content = (tmp_path / "a.mp4").read_bytes()
    assert b"avc1" in content and content.index(b"moov") < content.index(b"mdat")
    with VideoReader(tmp_path / "a.mp4") as video:
        read = list(video)
        assert video.fps == pytest.approx(10) and len(read) == 5
    for (_, frame), whole in zip(read, frames(5), strict=True):
        assert np.abs(frame.astype(int) - whole[: HEIGHT - 2, : WIDTH - 2]).mean() < 6


@pytest.mark.skipif(find_spec("av") is not None, reason="the package av is there")
def test_without_them_it_is_said_once_that_browsers_do_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    logging.getLogger("dformer").propagate = True
    files._log_mp4v.cache_clear()
    for name in ("a.mp4", "b.mp4", "c.webm"):
        save_animation(frames(2), tmp_path / name, fps=10)
    assert len(caplog.records) == 1 and "ffmpeg" in caplog.text


def test_webp_animations(tmp_path):
    save_animation(iter(frames(5)), tmp_path / "a.webp", fps=20)
    with Image.open(tmp_path / "a.webp") as picture:
        assert (picture.n_frames, picture.info["loop"]) == (5, 0)
        picture.seek(4)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - frames(5)[4]).mean() < 10


def test_gif_animations(tmp_path):
    save_animation(iter(frames(5)), tmp_path / "a.gif", fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (5, 50, 0)
        gif.seek(4)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames(5)[4]).mean() < 10


@pytest.mark.parametrize(("count", "error", "kept"), [(3, KeyboardInterrupt, 3), (3, RuntimeError, 0), (0, None, 0)])
def test_the_end_of_a_video(tmp_path, count, error, kept):
    """An interruption keeps the frames so far; after an error, or without frames, an old file stays."""
    file = tmp_path / "a.mp4"
    file.write_bytes(b"old")
    with pytest.raises(error) if error else nullcontext(), VideoWriter(file, 25) as video:
        for frame in frames(count):
            video.write(frame)
        if error:
            raise error
    assert list(tmp_path.iterdir()) == [file]
    if kept:
        with VideoReader(file) as video:
            assert len(list(video)) == kept
    else:
        assert file.read_bytes() == b"old"


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for source in (tmp_path / "text.mp4", tmp_path / "no.avi", 77):
        with pytest.raises(UserError, match=str(source)):
            VideoReader(source)
    for name in ("a.xyz", "no folder/a.mp4", "no folder/a.gif"):
        with pytest.raises(UserError, match=name):
            save_animation(frames(2), tmp_path / name, 25)
