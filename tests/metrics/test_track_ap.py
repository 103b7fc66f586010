"""AP of tracks, in cases that can be worked out by hand."""

import numpy as np
import pytest

from dformer.data.segmentations import decode_rle, encode_mask
from dformer.metrics.track_ap import beside_each_other, track_average_precision

SIZE = (6, 8)


def track(video, *columns, category=0, **more):
    """A track whose mask in frame t is the first columns[t] columns; None: it is not there."""
    masks = [None if c is None else encode_mask(np.arange(8) < np.full((6, 1), c)) for c in columns]
    segmentation = beside_each_other(masks, [SIZE] * len(columns))
    return {"video_id": video, "category_id": category, "segmentation": segmentation, **more}


def test_masks_beside_each_other_are_the_frames():
    masks = [np.random.default_rng(t).random((h, 5)) < 0.5 for t, h in enumerate((4, 6, 6))]
    joined = decode_rle(
        beside_each_other([encode_mask(masks[0]), None, encode_mask(masks[2])], [(4, 5), (6, 5), (6, 5)])
    )
    assert joined.shape == (6, 15) and not joined[4:, :5].any() and not joined[:, 5:10].any()
    assert (joined[:4, :5] == masks[0]).all() and (joined[:, 10:] == masks[2]).all()
    full = decode_rle(beside_each_other([encode_mask(np.ones(SIZE))] * 2, [SIZE] * 2))
    assert full.all()


def test_the_truth_has_100_and_nothing_0():
    truth = [track("a", 4, None, 2), track("b", 3, 3, category=1)]
    found = [{**t, "score": 0.5} for t in truth]
    results = track_average_precision(truth, found, ["cat", "dog", "cow"])
    assert [results[name] for name in ("AP", "AR1", "AP-cat", "AP-dog")] == pytest.approx([100] * 4)
    assert np.isnan(results["AP-cow"])
    assert track_average_precision(truth, [], ["cat", "dog"])["AP"] == 0


def test_iou_is_of_the_whole_video():
    # 4 + 0 of 4 + 4 columns are found, and 2 + 4 of 6 + 4: IoU 4 / 8 and 6 / 10.
    truth = [track("a", 4, 4), track("b", 2, 4)]
    found = [track("a", 4, None, score=0.9), track("b", 6, 4, score=0.8)]
    results = track_average_precision(truth, found, ["cat"])
    assert results["AP50"] == pytest.approx(100) and results["AP75"] == 0
    assert results["AP"] == pytest.approx((100 + 2 * results_at_half(truth, found)) / 10, abs=0.1)


def results_at_half(truth, found):
    """AP at IoU 0.55 and 0.6, where one of the two is right, the other, with the higher score, wrong."""
    return 100 * (51 * 0.5) / 101


def test_a_switched_id_is_two_tracks_of_which_one_can_match():
    truth = [track("a", 4, 4, 4, 4)]
    found = [track("a", 4, 4, 4, None, score=0.9), track("a", None, None, None, 4, score=0.8)]
    results = track_average_precision(truth, found, ["cat"])
    assert results["AP75"] == pytest.approx(100) and results["AP"] == pytest.approx(60)  # IoU 0.75: 6 thresholds of 10


def test_crowds_are_neither_missed_nor_wrong():
    truth = [track("a", 4, 4), track("a", 8, 8, iscrowd=1)]
    found = [track("a", 4, 4, score=0.9), track("a", 8, 8, score=0.95)]
    assert track_average_precision(truth, found, ["cat"])["AP"] == pytest.approx(100)
