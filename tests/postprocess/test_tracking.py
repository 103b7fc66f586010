"""Tracks by association."""

import numpy as np

from dformer.postprocess.tracking import MAX_HIDDEN, Tracks, associate


def squares(*lefts, size=10):
    """Masks (S, 20, 60) of squares in one row."""
    masks = np.zeros((len(lefts), 20, 60), bool)
    for mask, left in zip(masks, lefts, strict=True):
        mask[5:15, left : left + size] = True
    return masks


def test_segments_keep_the_ids_of_what_they_overlap_in_any_order():
    ids, tracks = associate(Tracks(), squares(0, 20, 40), [0, 0, 0])
    assert ids == [1, 2, 3]
    ids, tracks = associate(tracks, squares(42, 2, 22), [0, 0, 0])
    assert ids == [3, 1, 2]
    assert associate(tracks, squares(24), [0])[0] == [2]


def test_another_class_or_another_place_begins_a_track():
    _, tracks = associate(Tracks(), squares(0, 20), [0, 1])
    assert associate(tracks, squares(0, 20), [1, 1])[0] == [3, 2]
    assert associate(tracks, squares(40), [0])[0] == [3]


def test_a_hidden_object_keeps_its_id_for_a_while_and_no_id_is_given_twice():
    for frames, expected in ((MAX_HIDDEN, 1), (MAX_HIDDEN + 1, 3)):
        _, tracks = associate(Tracks(), squares(0, 30), [0, 0])
        for _ in range(frames):
            _, tracks = associate(tracks, squares(30), [0])
        assert associate(tracks, squares(0), [0])[0] == [expected]


def test_the_state_does_not_grow():
    tracks = Tracks()
    for frame in range(100):
        ids, tracks = associate(tracks, squares(20 * (frame % 3)), [frame % 7])
        assert ids == [frame + 1] and len(tracks.masks) <= MAX_HIDDEN + 1


def test_nothing_and_frames_of_another_size():
    assert associate(Tracks(), squares(), [])[0] == []
    _, tracks = associate(Tracks(), squares(0), [0])
    assert associate(tracks, np.ones((1, 4, 4), bool), [0])[0] == [2]
