"""Results from predictions: against the published implementation, and the awkward cases."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dformer.postprocess.queries import Instances, PanopticMap, SemanticScores, boxes_of, collect
from dformer.postprocess.view import View, resized_strips


def of_size(kind, logits, masks, *settings, max_elements=None):
    """The result of a kind, of masks that have its size."""
    size = tuple(masks.shape[1:])
    return collect([kind(logits, size, *settings)], resized_strips(masks, View(size, size, size), max_elements))[0]


semantic, panoptic, instances = (partial(of_size, kind) for kind in (SemanticScores, PanopticMap, Instances))


@pytest.mark.golden
def test_golden(golden_dir):
    golden = load_file(golden_dir / "postprocess.safetensors")
    logits, masks = golden["pred_logits"], golden["pred_masks"]
    num_classes = logits.shape[1] - 1
    things = torch.arange(num_classes) < 4
    torch.testing.assert_close(semantic(logits, masks), golden["sem_seg"], rtol=0, atol=1e-4)

    segment_map, segments = panoptic(logits, masks, things, 0.3, 0.6)
    assert torch.equal(segment_map, golden["panoptic_seg"])
    assert [[s["id"], s["category_id"], int(s["isthing"])] for s in segments] in (
        golden["segments"].tolist(),
        golden["segments"][:, [0, 2, 1]].tolist(),
    )
    for segment in segments:
        assert segment["area"] == int((segment_map == segment["id"]).sum())

    result = instances(logits, masks, things, 10)
    order = golden["instance_scores"].argsort(descending=True)
    torch.testing.assert_close(result.scores, golden["instance_scores"][order], rtol=0, atol=1e-4)
    assert torch.equal(result.classes, golden["instance_classes"][order])
    assert torch.equal(result.masks, golden["instance_masks"][order])


THINGS = torch.tensor([True, False])


def test_nothing_found():
    logits = torch.tensor([[0.0, 0.0, 9.0]] * 3)
    masks = torch.full((3, 5, 7), -9.0)
    segment_map, segments = panoptic(logits, masks, THINGS, 0.5, 0.5)
    assert segment_map.shape == (5, 7) and not segment_map.any() and segments == []
    assert semantic(logits, masks).shape == (2, 5, 7)
    result = instances(logits, masks, THINGS, 100)
    assert result.masks.shape[1:] == (5, 7) and len(result.scores) == 3 and not result.boxes.any()
    assert not len(instances(logits, masks, torch.zeros(2, dtype=torch.bool), 100).scores)


def test_stuff_is_merged_and_things_are_not():
    masks = torch.full((4, 4, 4), -9.0)
    for i in range(4):
        masks[i, i] = 9.0
    thing, stuff = [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]
    segment_map, segments = panoptic(torch.tensor([thing, stuff, thing, stuff]), masks, THINGS, 0.5, 0.5)
    assert [s["category_id"] for s in segments] == [0, 1, 0]
    assert segment_map[:, 0].tolist() == [1, 2, 3, 2]
    assert segments[1]["area"] == 8


def test_hidden_mask_is_dropped():
    """The surer of two equal masks wins all pixels; the other has none left."""
    masks = torch.full((2, 3, 3), 9.0)
    _, segments = panoptic(torch.tensor([[9.0, 0.0, 0.0], [5.0, 0.0, 0.0]]), masks, THINGS, 0.5, 0.8)
    assert [s["score"] > 0.99 for s in segments] == [True]


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_boxes_enclose_their_masks(height, width, data):
    cells = data.draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), min_size=1))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    for y, x in cells:
        mask[0, y, x] = True
    x0, y0, x1, y1 = boxes_of(mask)[0].int().tolist()
    assert (x0, y0) == (min(x for _, x in cells), min(y for y, _ in cells))
    assert (x1, y1) == (max(x for _, x in cells) + 1, max(y for y, _ in cells) + 1)


def test_strips_change_nothing():
    """A row at a time, all results are those of all rows at once."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20, 6, generator=generator)
    masks = F.interpolate(3 * torch.randn(1, 20, 6, 8, generator=generator), (24, 40))[0]
    things = torch.tensor([True, True, False, False, True])

    def results(max_elements=None):
        segment_map, segments = panoptic(logits, masks, things, 0.3, 0.1, max_elements=max_elements)
        segments = torch.tensor([list(({"source": -1} | segment).values()) for segment in segments])
        others = instances(logits, masks, things, 15, max_elements=max_elements)
        return [semantic(logits, masks, max_elements=max_elements), segment_map, segments, *others]

    whole = results()
    assert len(whole[2]) > 3 and (whole[1] == 0).any()
    for a, b in zip(results(max_elements=1), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    probability = masks.sigmoid()
    torch.testing.assert_close(whole[0], torch.einsum("nk,nhw->khw", logits.softmax(-1)[:, :-1], probability))


@given(st.data())
def test_strips_are_rows_of_the_resized_masks(data):
    side = st.integers(1, 40)
    height, width = data.draw(side), data.draw(side)
    canvas = data.draw(side), data.draw(side)
    image = data.draw(st.integers(1, canvas[0])), data.draw(st.integers(1, canvas[1]))
    size = data.draw(side), data.draw(side)
    masks = torch.randn(3, height, width, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    resize = partial(F.interpolate, mode="bilinear", align_corners=False)
    expected = resize(resize(masks[None], canvas)[..., : image[0], : image[1]], size)[0]
    max_elements = data.draw(st.sampled_from([1, 300, None]))
    rows, strips = zip(*resized_strips(masks, View(canvas, image, size), max_elements), strict=True)
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(size[0]))
    torch.testing.assert_close(torch.cat(strips, dim=1), expected, rtol=1e-4, atol=1e-5)
