"""Several answers merged into one."""

import numpy as np

from dformer.postprocess.ensemble import merge_samples


def sample(*boxes, classes=None, scores=None):
    """A map of 8 x 8 with these boxes (top, left, bottom, right) as segments, in any order of ids."""
    ids, segments = np.zeros((8, 8), np.int32), []
    for k, (top, left, bottom, right) in enumerate(boxes):
        ids[top:bottom, left:right] = k + 1
        segment = {"id": k + 1, "category_id": classes[k] if classes else 0, "isthing": True, "area": 0}
        segments.append(segment | {"score": scores[k] if scores else 1.0})
    return ids, segments


A, B = (0, 0, 4, 4), (4, 4, 8, 8)


def test_the_same_answers_agree():
    ids, segments, agreement = merge_samples([sample(A, B), sample(B, A), sample(A, B)])
    assert [s["score"] for s in segments] == [1, 1] and (agreement == 1).all()
    assert (ids[:4, :4] == 1).all() and (ids[4:, 4:] == 2).all() and (ids > 0).sum() == 32


def test_what_few_have_found_is_left_out():
    ids, segments, agreement = merge_samples([sample(A, B), sample(A), sample(A)])
    assert len(segments) == 1 and (ids[4:, 4:] == 0).all()
    assert np.allclose(agreement[4:, 4:], 2 / 3) and (agreement[:4, :4] == 1).all()


def test_a_score_is_the_overlap_with_each_answer_of_its_class():
    wide = (0, 0, 4, 3)  # IoU 3/4
    _, (segment,), _ = merge_samples([sample(A), sample(A, scores=[0.8]), sample(wide), sample(A)])
    assert np.isclose(segment["score"], (1 + 0.8 + 0.75 + 1) / 4)
    half = (0, 0, 4, 2)  # IoU 1/2: another segment
    _, (segment,), _ = merge_samples([sample(A), sample(A), sample(half)])
    assert np.isclose(segment["score"], 2 / 3)
    _, (segment,), _ = merge_samples([sample(A, classes=[1]), sample(A, classes=[2]), sample(A, classes=[2])])
    assert segment["category_id"] == 2 and np.isclose(segment["score"], 2 / 3)


def test_no_segments_at_all():
    ids, segments, agreement = merge_samples([sample(), sample()])
    assert not ids.any() and segments == [] and (agreement == 1).all()
