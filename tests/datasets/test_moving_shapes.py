"""Moving Shapes."""

import numpy as np
from PIL import Image

from tests import load_script, run_script


def test_clips_have_frames_ids_and_classes_and_are_repeatable(tmp_path):
    for root in (tmp_path / "a", tmp_path / "b"):
        assert run_script("datasets/moving_shapes.py", "--root", root, "--clips", 2, "--frames", 3, "--size", 32) == 0
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 * 3 * 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    ids = np.array(Image.open(tmp_path / "a" / "moving_shapes" / "Annotations" / "00001" / "00000.png"))
    assert ids.shape == (32, 32) and ids.max() <= 6
    assert run_script("datasets/moving_shapes.py", "--root", tmp_path / "a") == 2  # there is one already


def test_an_object_keeps_its_id_and_class_and_moves():
    clip = load_script("datasets/moving_shapes.py").clip
    frames = list(clip(np.random.default_rng(3), 64, 8))
    for number in range(1, 7):
        classes = {int(c) for _, ids, classes in frames for c in np.unique(classes[ids == number])}
        assert len(classes) <= 1
    assert (frames[0][1] > 0).any() and (frames[0][1] != frames[-1][1]).any()
