"""What a model does with masks that are given: it makes them better, keeps them, and finds the rest."""

import numpy as np
import pytest

from dformer.d2.engine.predictor import Predictor
from dformer.utils.errors import UserError
from tests.d2.tiny import random_model

LISTENING = ["DIFFUSION.ASSIGNMENT", "denoising", "DIFFUSION.SIGNAL_SCALE", 1.0]
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
BOXES = [(0, 0, 40, 20), (40, 0, 80, 48), (0, 24, 36, 48)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Predictor:
    """A model with random weights, whose masks are what it is given and something from the image."""
    return Predictor(random_model(tmp_path_factory.mktemp("weights") / "model.pth", opts=LISTENING))


def masks_of(boxes) -> np.ndarray:
    masks = np.zeros((len(boxes), 48, 80), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.array([[(a & b).sum() / (a | b).sum() for b in others] for a in masks])


def test_refined_masks_are_in_the_order_of_the_given_ones(model):
    result = model.refine(IMAGE, masks_of(BOXES), time=0)
    assert overlaps(result.masks, masks_of(BOXES)).argmax(1).tolist() == [0, 1, 2]
    turned = model.refine(IMAGE, masks_of(BOXES[::-1]), time=0)
    assert overlaps(turned.masks, masks_of(BOXES)).argmax(1).tolist() == [2, 1, 0]


def test_more_masks_than_the_model_has_are_refined_in_groups(model):
    assert len(model.refine(IMAGE, boxes=BOXES * 5, time=0).masks) == 15


def test_boxes_are_masks(model):
    by_boxes, by_masks = model.refine(IMAGE, boxes=BOXES, steps=2), model.refine(IMAGE, masks_of(BOXES), steps=2)
    assert (by_boxes.masks == by_masks.masks).all()


def test_given_classes_are_kept(model):
    free, given = model.refine(IMAGE, boxes=BOXES), model.refine(IMAGE, boxes=BOXES, classes=[3, 0, 5])
    assert given.classes.tolist() == [3, 0, 5] and (given.masks == free.masks).all()
    assert (given.scores <= free.scores + 1e-6).all()


def test_the_time_says_how_much_a_mask_is_trusted(model):
    kept = [overlaps(model.refine(IMAGE, boxes=BOXES, time=t).masks, masks_of(BOXES)).diagonal() for t in (0, 999)]
    assert kept[0].mean() > kept[1].mean() + 0.2


@pytest.mark.parametrize(
    "asked, key",
    [
        ({}, "masks"),
        ({"masks": masks_of(BOXES), "boxes": BOXES}, "masks"),
        ({"masks": np.ones((2, 4, 4))}, "masks"),
        ({"boxes": [(5, 5, 5, 9)]}, "boxes"),
        ({"boxes": BOXES, "time": 1000}, "time"),
        ({"boxes": BOXES, "time": 5, "steps": 9}, "steps"),
    ],
)
def test_what_cannot_be_refined(model, asked, key):
    with pytest.raises(UserError, match=key):
        model.refine(IMAGE, **asked)


def test_known_segments_keep_their_pixels_and_ids(model):
    known = (9 * masks_of(BOXES)[0] + 4 * masks_of(BOXES)[2]).astype(np.uint8)
    (found,) = model.predict([IMAGE], known=[known], request=model.make_request(steps=2))
    ids, segments = found["panoptic_seg"][0].numpy(), found["panoptic_seg"][1]
    assert (ids[known > 0] == known[known > 0]).all() and not set(np.unique(ids[known == 0])) & {4, 9}
    areas = {segment["id"]: segment["area"] for segment in segments}
    assert areas == {number: (ids == number).sum() for number in np.unique(ids) if number}


def test_answers_from_different_noise_are_merged(model):
    result = model.ensemble(IMAGE, 3, steps=1)
    assert result.agreement.shape == (48, 80) and result.agreement.min() > 0 and result.agreement.max() <= 1
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    with pytest.raises(UserError, match="samples"):
        model.ensemble(IMAGE, 1)


@pytest.mark.parametrize("system", ["DFormer", "Mask2Former"])
def test_models_that_take_no_masks(system, tmp_path):
    other = Predictor(random_model(tmp_path / "model.pth", system))
    with pytest.raises(UserError, match="refine"):
        other.refine(IMAGE, boxes=BOXES)
    with pytest.raises(UserError, match="complete"):
        other(IMAGE, known=np.zeros((48, 80), np.uint8))
