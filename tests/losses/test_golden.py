"""Cost, matching and losses at given points against tensors of the published implementation."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dformer.losses.criterion import Criterion, Target, classification_targets, dice_loss, mask_bce
from dformer.losses.matcher import LossWeights, assign, matching_cost
from dformer.losses.points import uncertainty

pytestmark = pytest.mark.golden
WEIGHTS = LossWeights(classes=2.0, mask=5.0, dice=5.0)


def test_criterion(golden_dir):
    golden = load_file(golden_dir / "criterion.safetensors")
    logits, points = golden["pred_logits"], golden["pred_mask_points"]
    labels, truth = golden["target_labels"], golden["target_mask_points"]
    cost = matching_cost(logits, points, labels, truth, WEIGHTS)
    torch.testing.assert_close(cost, golden["cost_matrix"], rtol=0, atol=1e-4)

    ((rows, columns),), _ = assign([cost[None]])
    expected = sorted(zip(golden["match_pred"].tolist(), golden["match_target"].tolist(), strict=True))
    assert sorted(zip(rows[0].tolist(), columns[0].tolist(), strict=True)) == expected

    matched = points[rows[0]], truth[columns[0]]
    torch.testing.assert_close(mask_bce(*matched).sum() / len(labels), golden["loss_mask"], rtol=0, atol=1e-4)
    torch.testing.assert_close(dice_loss(*matched).sum() / len(labels), golden["loss_dice"], rtol=0, atol=1e-4)
    torch.testing.assert_close(uncertainty(points)[:, None], golden["uncertainty"], rtol=0, atol=1e-4)

    target = Target(labels, torch.zeros(len(labels), 1, 1, dtype=torch.bool))
    classes = classification_targets(logits[None, None], [target], [(rows, columns)])
    criterion = Criterion(
        num_classes=logits.shape[1] - 1,
        weights=WEIGHTS,
        cost_weights=WEIGHTS,
        no_object_weight=0.1,
        num_points=points.shape[1],
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    loss = F.cross_entropy(logits, classes[0, 0], criterion.class_weight)
    torch.testing.assert_close(loss, golden["loss_ce"], rtol=0, atol=1e-4)
