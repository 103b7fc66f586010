"""One-to-many matching."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from dformer.losses.dynamic_k import BoxLossWeights, assign, dynamic_k, matching_cost
from tests.models.test_diffusioninst import extent_of, part


@pytest.mark.golden
def test_published_matching(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_matcher.safetensors")
    weights = BoxLossWeights(*golden["weights"].tolist(), dice=5.0)
    cases = sorted({name.split(".")[0] for name in golden} - {"weights"})
    assert "lost" in cases
    for name in cases:
        case = part(golden, name)
        truth = case["gt_classes"], case["gt_boxes"], extent_of(case["size"])
        cost, iou = matching_cost(case["pred_logits"], case["pred_boxes"], *truth, weights)
        assert_close(cost, case["cost"], rtol=0, atol=1e-3 if (cost > 5000).any() else 1e-4)
        assert_close(iou, case["ious"], rtol=0, atol=1e-5)
        owner = dynamic_k(cost, iou)
        assert set(owner[owner >= 0].tolist()) == set(range(len(case["gt_boxes"])))  # the published code loses some
        if name != "lost":
            assert torch.equal(owner >= 0, case["selected"])
            assert torch.equal(owner[owner >= 0], case["gt_index"])


@pytest.mark.parametrize(("boxes", "targets"), [(4, 0), (4, 1), (8, 8), (8, 7), (20, 6), (3, 5), (1, 4)])
def test_no_ground_truth_is_left_without_a_prediction(boxes, targets):
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        cost = torch.rand(boxes, targets, generator=generator) + torch.rand(boxes, 1, generator=generator) * 10
        owner = dynamic_k(cost, torch.rand(boxes, targets, generator=generator))
        owners = set(owner.tolist()) - {-1}
        assert owners <= set(range(targets)) and len(owners) == min(boxes, targets)


def test_overlapping_predictions_share_a_ground_truth_box():
    iou = torch.tensor([[0.9], [0.8], [0.7], [0.0], [0.0]])  # 2.4 together
    assert dynamic_k(1 - iou, iou).tolist() == [0, 0, -1, -1, -1]


def test_costs_that_are_not_finite_are_matched_alike():
    cost = torch.rand(1, 6, 2)
    cost[0, 1], cost[0, 2, 0] = torch.nan, torch.inf
    first, second = (assign([cost], [torch.zeros(1, 6, 2)]) for _ in range(2))
    assert torch.equal(first.box, second.box) and set(first.target.tolist()) == {0, 1}


def test_matches_of_several_images_and_stages_are_listed_by_image():
    costs = [torch.rand(2, 6, count) for count in (2, 0, 3)]
    matches = assign(costs, [torch.zeros_like(cost) for cost in costs])
    assert matches.per_image == [4, 0, 6] and matches.counts.tolist() == [5, 5]
    assert matches.image.tolist() == [0] * 4 + [2] * 6
    assert sorted(matches.target.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
