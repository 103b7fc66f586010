"""J&F, HOTA and IDF1."""

import numpy as np
import pytest
from PIL import Image

from dformer.metrics.tracks import given_object_quality, track_quality

pytest.importorskip("trackeval")


def video(*rows):
    """Ids (T, 8, n), each row a frame."""
    return np.repeat(np.array(rows)[:, None], 8, axis=1)


TRUTH = video(*[[1] * 8 + [0] * 8 + [2] * 8] * 4)


def test_the_truth_has_100_whatever_its_ids_are():
    found = np.choose(TRUTH, [0, 9, 3])
    assert track_quality([(TRUTH, found)]) == pytest.approx(
        dict.fromkeys(("J&F", "J", "F", "HOTA", "DetA", "AssA", "IDF1"), 100)
    )


def test_a_switched_id_costs_association_and_not_detection():
    found = TRUTH.copy()
    found[2:][found[2:] == 1] = 3
    quality = track_quality([(TRUTH, found)])
    assert quality["DetA"] == pytest.approx(100)
    # Object 1 has half of its masks in the better of its tracks, object 2 all: J, and IDF1 of 6 of 8 masks.
    assert quality["J"] == pytest.approx(75) and quality["IDF1"] == pytest.approx(75)
    assert quality["AssA"] == pytest.approx(75)  # of each mask 1/2 or 1


def test_a_video_without_objects_and_one_without_answers():
    assert track_quality([(TRUTH, np.zeros_like(TRUTH))])["IDF1"] == 0
    quality = track_quality([(TRUTH, TRUTH), (0 * TRUTH, 0 * TRUTH)])
    assert quality == pytest.approx(dict.fromkeys(quality, 100))


def test_given_objects_are_known_by_their_ids():
    assert given_object_quality([(TRUTH, TRUTH)]) == pytest.approx({"J&F": 100, "J": 100, "F": 100})
    late = TRUTH.copy()
    late[1:][late[1:] == 2] = 5  # another id is another object; the first frame is given
    late[[0, -1]] = 0  # the last does not count, either
    assert given_object_quality([(TRUTH, late)]) == pytest.approx({"J&F": 50, "J": 50, "F": 50})
    new = TRUTH.copy()
    new[1:][new[1:] == 0] = 3  # whatever comes later
    assert given_object_quality([(new, TRUTH)]) == pytest.approx({"J&F": 100, "J": 100, "F": 100})
    half = np.where(np.arange(24) < 4, 0, TRUTH)  # of object 1
    assert given_object_quality([(TRUTH, half)])["J"] == pytest.approx(75)
    gone = np.where(np.arange(4)[:, None, None] < 2, TRUTH, 0)  # in the second frame that counts, neither is found
    assert given_object_quality([(gone, gone)])["J"] == pytest.approx(100)
    once = np.where((np.arange(4)[:, None, None] > 0) & (TRUTH == 2), 0, TRUTH)  # seen in no frame that counts
    assert given_object_quality([(once, half)])["J"] == pytest.approx(50)


def test_given_objects_have_the_figures_of_vos_benchmark(tmp_path):
    vos = pytest.importorskip("vos_benchmark.benchmark")
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 40, 50), np.uint8)
    truth[:, 5:20, 5:25], truth[:, 25:35, 30:45] = 1, 2
    found = np.stack([np.roll(frame, rng.integers(-4, 5, 2), (0, 1)) for frame in truth])
    for name, frames in (("truth", truth), ("found", found)):
        (tmp_path / name / "a").mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / "a" / f"{t}.png")
    theirs = vos.benchmark([str(tmp_path / "truth")], [str(tmp_path / "found")], num_processes=1, verbose=False)
    ours = given_object_quality([(truth, found)])
    assert [ours[name] for name in ("J&F", "J", "F")] == pytest.approx([x[0] for x in theirs[:3]], rel=1e-12)
