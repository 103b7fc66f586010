"""Hints: which object each slot shows, and how masks are perturbed."""

import pytest
import torch

from dformer.signals.hints import (
    FREE,
    NO_OBJECT,
    fill_boxes,
    given_hints,
    has_better_duplicate,
    mask_iou,
    own_hints,
    perturb,
    true_hints,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(*corners: tuple[int, int], side: int = 4, size: int = 16) -> torch.Tensor:
    masks = torch.zeros(len(corners), size, size)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = 1
    return masks


@pytest.mark.parametrize("count, slots", [(0, 5), (3, 5), (5, 5), (9, 5)])
def test_true_hints_show_their_owner(count, slots):
    corners = [(2 * k, 20 - 2 * k) for k in range(count)]
    masks = squares(*corners, side=10, size=32)
    owners = []
    for seed in range(40):
        hints = true_hints(masks, slots, generator(seed))
        assert hints.masks.shape == (slots, 32, 32) and hints.owner.shape == (slots,)
        shown = hints.owner != FREE
        assert len(hints.owner[shown].unique()) == shown.sum()  # no object twice
        for mask, owner in zip(hints.masks[shown], hints.owner[shown].tolist(), strict=True):
            assert mask_iou(mask[None] > 0.5, masks[owner][None])[0, 0] > 0.3
        owners.append(shown.sum().item())
    assert max(owners) == min(count, slots) and (count == 0 or min(owners) < min(count, slots))


def test_an_object_without_a_cell_is_no_hint():
    hints = true_hints(torch.zeros(3, 16, 16), 5, generator())
    assert (hints.owner == FREE).all()


def test_given_masks_are_in_the_first_slots():
    hints = given_hints([squares((0, 0), (8, 8)), squares()], 4)
    assert hints.owner.tolist() == [[0, 1, FREE, FREE], [FREE] * 4]
    assert torch.equal(hints.masks[0, :2], squares((0, 0), (8, 8))) and hints.masks.shape == (2, 4, 16, 16)


def test_own_hints_with_their_errors_duplicates_and_misses():
    truth = squares((0, 0), (0, 8), (8, 0))
    masks = squares((0, 0), (0, 1), (0, 9), (2, 8), (8, 8), (8, 0), (12, 12))
    scores = torch.tensor([0.9, 0.8, 0.9, 0.7, 0.9, 0.2, 0.9])
    hints = own_hints(masks, scores, truth, torch.tensor(0.3))
    # the second duplicates the first, the fourth shows too little of its object, the sixth has a low score
    assert hints.owner.tolist() == [0, FREE, 1, NO_OBJECT, NO_OBJECT, FREE, NO_OBJECT]
    none = own_hints(masks, scores, truth[:0], torch.tensor(0.3))
    assert set(none.owner.tolist()) == {FREE, NO_OBJECT}


def test_duplicates_and_empty_masks():
    masks = torch.cat([squares((0, 0), (0, 1), (8, 8)), torch.zeros(1, 16, 16)])
    worse = has_better_duplicate(masks, torch.tensor([0.5, 0.6, 0.1, 0.9]))
    assert worse.tolist() == [True, False, False, True]


def test_perturbed_masks_stay_near():
    masks = squares((6, 6)).expand(400, -1, -1)
    areas = perturb(masks, generator()).flatten(1).sum(1)
    assert {4.0, 16.0, 36.0} <= set(areas.tolist())  # eroded, as it is, dilated
    moved = perturb(masks, generator())
    rows = moved.sum(2).argmax(1)
    assert rows.min() >= 6 - 1 - 2 and rows.max() <= 6 + 1 + 2 and len(rows.unique()) > 3


def test_boxes():
    ring = squares((2, 3))
    ring[0, 3:5, 4:6] = 0
    torch.testing.assert_close(fill_boxes(ring), squares((2, 3)))
    assert fill_boxes(torch.zeros(1, 4, 4)).sum() == 0
