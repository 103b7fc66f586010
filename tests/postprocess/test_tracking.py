"""Tracks by association."""

import numpy as np
import torch

from dformer.postprocess.tracking import MAX_HIDDEN, Tracks, associate, match_queries


def squares(*lefts, size=10):
    """Masks (S, 20, 60) of squares in one row."""
    masks = np.zeros((len(lefts), 20, 60), bool)
    for mask, left in zip(masks, lefts, strict=True):
        mask[5:15, left : left + size] = True
    return masks


def test_segments_keep_the_ids_of_what_they_overlap_in_any_order():
    ids, tracks = associate(Tracks(), squares(0, 20, 40))
    assert ids == [1, 2, 3]
    ids, tracks = associate(tracks, squares(42, 2, 22))
    assert ids == [3, 1, 2]
    assert associate(tracks, squares(24))[0] == [2]


def test_another_place_begins_a_track():
    _, tracks = associate(Tracks(), squares(0, 20))
    assert associate(tracks, squares(40))[0] == [3]


def test_a_hidden_object_keeps_its_id_for_a_while_and_no_id_is_given_twice():
    for frames, expected in ((MAX_HIDDEN, 1), (MAX_HIDDEN + 1, 3)):
        _, tracks = associate(Tracks(), squares(0, 30))
        for _ in range(frames):
            _, tracks = associate(tracks, squares(30))
        assert associate(tracks, squares(0))[0] == [expected]


def test_the_state_does_not_grow():
    tracks = Tracks()
    for frame in range(100):
        ids, tracks = associate(tracks, squares(8 * (frame % 7), size=8))
        assert ids == [frame + 1] and len(tracks.seen) <= MAX_HIDDEN + 1


def test_nothing_and_frames_of_another_size():
    assert associate(Tracks(), squares())[0] == []
    _, tracks = associate(Tracks(), squares(0))
    assert associate(tracks, np.ones((1, 4, 4), bool))[0] == [2]


def test_tracks_of_another_size_end():
    _, tracks = associate(Tracks(), squares(0, 30))
    assert tracks.of_size((20, 60)) == tracks
    ended = tracks.of_size((20, 61))
    assert ended.ids == () and ended.next_id == 3


def test_queries_keep_the_slots_of_those_that_they_are_like():
    embeddings = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    slots, state = match_queries(None, embeddings)
    assert slots == [0, 1, 2, 3, 4, 5]
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    slots, state = match_queries(state, 3 * embeddings[order] + 0.01)
    assert slots == order.tolist()  # whatever their lengths
    slots, _ = match_queries(state, embeddings)  # by slot, not by query of the frame before
    assert slots == [0, 1, 2, 3, 4, 5]
