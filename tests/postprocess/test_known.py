"""Given segments in a panoptic map."""

import torch

from dformer.postprocess.known import fill_unknown, paste_known, split_known


def test_ids_and_masks_of_a_map():
    ids, masks = split_known(torch.tensor([[0, 7, 7], [3, 0, 7]]))
    assert ids == [3, 7] and masks.int().tolist() == [[[0, 0, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 1]]]
    assert split_known(torch.zeros(2, 3, dtype=torch.int64))[1].shape == (0, 2, 3)


def test_given_segments_stay_and_found_ones_that_are_them_go():
    found = torch.tensor([[1, 1, 1, 2], [1, 1, 1, 2], [3, 3, 3, 3]], dtype=torch.int32)
    segments = [{"id": k, "area": area, "category_id": k} for k, area in ((1, 6), (2, 2), (3, 4))]
    known = torch.tensor([[5, 5, 0, 0], [5, 5, 0, 0], [5, 0, 0, 0]])
    result, merged = paste_known(found, segments, known, [{"id": 5, "category_id": 9}])
    assert result.tolist() == [[5, 5, 0, 6], [5, 5, 0, 6], [5, 7, 7, 7]]
    assert [(s["id"], s["category_id"], s["area"]) for s in merged] == [(5, 9, 5), (6, 2, 2), (7, 3, 3)]


def test_unknown_pixels_are_filled_from_the_nearest_known():
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(9, 14, generator=generator) < 0.2
    known = given * torch.randint(1, 6, given.shape, generator=generator)
    filled, places = fill_unknown(known), given.nonzero().float()
    assert torch.equal(filled[given], known[given])
    for y, x in (~given).nonzero().tolist():
        distance = (places - torch.tensor([y, x])).norm(dim=1)
        assert filled[y, x] in known[given][distance == distance.min()]
    assert not fill_unknown(torch.zeros(3, 4, dtype=torch.int64)).any()
