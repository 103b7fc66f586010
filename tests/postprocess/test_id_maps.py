"""From logits of ids to segments."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dformer.postprocess.id_maps import SegmentThresholds, segment_map
from dformer.postprocess.view import View

ALL = SegmentThresholds(0.0, 0.0, 0, -math.inf)


def logits_of(ids, count=8, sure=6.0):
    return sure * (2 * F.one_hot(ids, count).movedim(2, 0).float() - 1)


def view(size):
    return View(size, size, size)


def halves():
    ids = torch.full((8, 8), 5)
    ids[:, 4:] = 2
    ids[0, 0] = 7
    return ids


def test_segments_come_in_the_order_of_their_ids_and_void_is_none():
    ids = halves()
    ids[7] = 0
    found = segment_map(logits_of(ids), view((8, 8)), ALL)
    assert found.ids.tolist() == [2, 5, 7] and found.areas.tolist() == [28, 27, 1]
    assert torch.equal(F.pad(found.ids, (1, 0))[found.numbers], ids)
    assert found.scores.min() > 0.99


@pytest.mark.parametrize(
    ("thresholds", "left"),
    [
        (ALL._replace(area=2), [2, 5]),
        (ALL._replace(area=100), []),
        (ALL._replace(probability=1.1), []),
        (ALL._replace(margin=1.1), []),
        (ALL._replace(overlap=0.6, logit=0.0), [2, 5, 7]),
        (ALL._replace(overlap=0.6), []),  # from any logit on, each id's mask is the whole map
    ],
)
def test_thresholds(thresholds, left):
    assert segment_map(logits_of(halves()), view((8, 8)), thresholds).ids.tolist() == left


def test_a_segment_that_mostly_loses_to_others_is_dropped():
    logits = logits_of(halves())
    logits[7] = logits.amax(0) - 0.1  # id 7 would take all, but wins in one pixel
    logits[7, 0, 0] += 0.2
    thresholds = ALL._replace(overlap=0.5, logit=0.0)
    assert segment_map(logits, view((8, 8)), thresholds).ids.tolist() == [2, 5]


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["evaluation", "strict", "difference", "autoencoder"])
def test_golden_segments(golden_dir, kind):
    golden = load_file(golden_dir / "ldmseg_postprocess.safetensors")
    mask, overlap, area = golden[f"{kind}.thresholds"].tolist()
    # Of the first stage, raw logits are compared with the threshold, as published; of the second, their sigmoids.
    logit = mask if kind == "autoencoder" else math.log(mask / (1 - mask))
    margin = mask if kind == "difference" else 0.0
    thresholds = SegmentThresholds(0.0 if margin else mask, overlap, int(area), logit, margin)
    canvas = int(golden["canvas"])
    for b, (logits, inside) in enumerate(zip(golden["logits"], golden["padding"], strict=True)):
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        # The published code pads on all sides: the image is cut out first, and fills its canvas here.
        whole = F.interpolate(logits[None], (canvas, canvas), mode="bilinear")[0]
        cut = whole[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        size = (cut.shape[1], cut.shape[2])
        height, width = golden["sizes"][b].tolist()
        found = segment_map(cut, View(size, size, (height, width)), thresholds)
        assert torch.equal(F.pad(found.ids + 1, (1, 0))[found.numbers], golden[f"{kind}.{b}.map"])
        assert (found.ids + 1).tolist() == golden[f"{kind}.{b}.segments"].tolist()
