"""Videos are read again after they were written; what an error or an interruption leaves."""

import numpy as np
import pytest
from PIL import Image

from dformer.utils.errors import UserError
from dformer.visualize.files import CODECS, VideoReader, VideoWriter, save_animation

WIDTH, HEIGHT = 64, 48


def frames(count: int) -> list[np.ndarray]:
    """Red grows from left to right, and each frame has a brightness of its own in green; blue is 0."""
    made = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    made[..., 0] = np.linspace(0, 255, WIDTH)
    made[..., 1] = 20 * np.arange(count)[:, None, None]
    return list(made)


@pytest.mark.parametrize("suffix", CODECS)
def test_what_was_written_is_read_again(tmp_path, suffix):
    expected = frames(12)
    with VideoWriter(tmp_path / f"a{suffix}", fps=10) as video:
        for frame in expected:
            video.write(frame)
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


def test_an_interruption_keeps_the_frames_so_far_and_an_error_nothing(tmp_path):
    for kind, expected in [(KeyboardInterrupt, 3), (RuntimeError, None)]:
        file = tmp_path / f"{kind.__name__}.mp4"
        with pytest.raises(kind), VideoWriter(file, 25) as video:
            for frame in frames(3):
                video.write(frame)
            raise kind
        if expected:
            with VideoReader(file) as video:
                assert len(list(video)) == expected
        else:
            assert not file.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["KeyboardInterrupt.mp4"]


def test_nothing_is_written_for_no_frames_and_an_old_file_stays(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"old")
    with VideoWriter(file, 25):
        pass
    with pytest.raises(RuntimeError), VideoWriter(file, 25) as video:
        video.write(frames(1)[0])
        raise RuntimeError
    assert file.read_bytes() == b"old"


def test_animations(tmp_path):
    save_animation(iter(frames(5)), tmp_path / "a.gif", fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (5, 50, 0)
        gif.seek(4)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames(5)[4]).mean() < 10
    save_animation(frames(5), tmp_path / "a.mp4", fps=20)
    with VideoReader(tmp_path / "a.mp4") as video:
        assert len(list(video)) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "a.mp4"]


def test_what_cannot_be_opened_is_told(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for source, says in [
        (tmp_path / "text.mp4", "text.mp4 cannot be read"),
        (tmp_path / "no.avi", "no.avi"),
        (77, "camera 77"),
    ]:
        with pytest.raises(UserError, match=says):
            VideoReader(source)
    with pytest.raises(UserError, match="written as .mp4"):
        VideoWriter(tmp_path / "a.xyz", 25)
    with (
        pytest.raises(UserError, match="cannot be written"),
        VideoWriter(tmp_path / "no folder" / "a.mp4", 25) as video,
    ):
        video.write(frames(1)[0])
    with pytest.raises(UserError, match="cannot be written"):
        save_animation(frames(2), tmp_path / "no folder" / "a.gif", 25)
