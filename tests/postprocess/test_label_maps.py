"""Classes and ids to segments."""

import pytest
import torch
from safetensors.torch import load_file

from dformer.postprocess.label_maps import find_segments, majority_vote


def test_vote():
    ids = torch.tensor([[1, 1, 1, 2], [2, 2, 0, 3]])
    classes = torch.tensor([[5, 5, 2, 4], [3, 0, 2, 0]])
    voted, kept = majority_vote(classes, ids)
    assert voted.tolist() == [[5, 5, 5, 0], [0, 0, 2, 0]]  # of three equals the lowest, 0
    assert kept.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    voted, kept = majority_vote(classes, ids, min_pixels=4)
    assert not voted.any() and not kept.any()


def test_segments():
    things = torch.tensor([True, True, False])
    classes = torch.tensor([[1, 1, 3, 3], [1, 2, 3, 0]])
    ids = torch.tensor([[4, 4, 1, 2], [7, 5, 2, 0]])
    confidence = torch.tensor([[0.5, 0.7, 1.0, 0.6], [0.9, 0.2, 0.8, 1.0]])
    segments = find_segments(classes, ids, confidence, things)
    info = segments.info(things)
    assert [s["category_id"] for s in info] == [0, 1, 0, 2] and [s["isthing"] for s in info] == [True] * 3 + [False]
    assert [s["area"] for s in info] == [2, 1, 1, 3]
    assert [s["score"] for s in info] == pytest.approx([0.6, 0.2, 0.9, 0.8])
    assert segments.map.tolist() == [[1, 1, 4, 4], [3, 2, 4, 0]] and segments.map.dtype == torch.int32
    assert [s["id"] for s in find_segments(classes, ids, confidence, things, min_score=0.5).info(things)] == [1, 2, 3]


def test_nothing_found():
    nothing = torch.zeros(3, 4, dtype=torch.int64)
    classes, ids = majority_vote(nothing, nothing, min_pixels=5)
    segments = find_segments(classes, ids, torch.ones(3, 4), torch.tensor([True]))
    assert not segments.map.any() and segments.info(torch.tensor([True])) == []


@pytest.mark.golden
@pytest.mark.parametrize("min_pixels", [0, 10, 80])
def test_golden_vote(golden_dir, min_pixels):
    golden = load_file(golden_dir / "pix2seqd_postprocess.safetensors")
    classes, ids = majority_vote(golden["semantic"].long(), golden["identity"].long(), min_pixels)
    assert torch.equal(classes, golden[f"min{min_pixels}.semantic"])
    assert torch.equal(ids.int(), golden[f"min{min_pixels}.identity"])
