"""Video panoptic quality."""

import numpy as np
import pytest

from dformer.metrics.vpq import video_panoptic_quality

CATEGORIES = {0: {"name": "disc", "isthing": 1}, 1: {"name": "grass", "isthing": 0}}


def video(ids, classes):
    return np.stack([np.asarray(classes), np.asarray(ids)], -1)


TRUTH = video([[[1, 1, 0, 0]]] * 4, [[[0, 0, 1, 1]]] * 4)


def test_the_truth_has_100_whatever_its_ids_are():
    found = TRUTH.copy()
    found[..., 1] = np.where(TRUTH[..., 0] == 0, 77, 5)  # ids of stuff mean nothing
    assert set(video_panoptic_quality([(TRUTH, found)], CATEGORIES).values()) == {100}


def test_a_switched_id_splits_the_tubes_that_it_is_in():
    found = TRUTH.copy()
    found[2:, ..., 1] *= 2
    quality = video_panoptic_quality([(TRUTH, found)], CATEGORIES)
    # Windows of 2: of three tubes of the disc, one is halved: IoU 1/2 is no match. Grass is always right.
    assert quality["VPQ1"] == 100
    assert quality["VPQ2"] == pytest.approx(100 * (2 / (2 + 0.5 * 2 + 0.5 * 1) + 1) / 2)
    # Windows of 3: frames 0..2 and 1..3; two thirds of each tube match with IoU 2/3, the rest is false.
    assert quality["VPQ3"] == pytest.approx(100 * (2 * (2 / 3) / (2 + 0.5 * 2) + 1) / 2)
    assert quality["VPQ"] == pytest.approx(np.mean([quality[f"VPQ{k}"] for k in (1, 2, 3, 4)]))


def test_void_and_crowds_are_not_counted():
    truth, found = TRUTH.copy(), TRUTH.copy()
    truth[..., :2, 1] = 0  # the disc is a crowd
    truth[..., 3, 0] = 255
    assert video_panoptic_quality([(truth, found)], CATEGORIES)["VPQ"] == 100
