"""The losses of boxes and mask heads."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from dformer.losses.boxes import BoxCriterion, BoxTarget, class_loss, dice_loss
from dformer.losses.dynamic_k import BoxLossWeights
from dformer.ops.dynamic_masks import num_dynamic_parameters
from tests.models.test_diffusioninst import extent_of, part

WEIGHTS = BoxLossWeights(classes=2.0, l1=5.0, giou=2.0, dice=5.0)
NAMES = {"loss_ce": "loss_ce", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou", "loss_dice": "loss_masks"}


def published_case(golden):
    count = len({name.split(".")[1] for name in golden if name.startswith("target.")})
    cases = [part(golden, f"target.{i}") for i in range(count)]
    targets = [BoxTarget(c["classes"], c["boxes"], c["masks"], extent_of(c["size"])) for c in cases]
    inputs = [golden[f"pred_{name}"].requires_grad_() for name in ("logits", "boxes", "kernels")]
    return [*inputs, golden["mask_features"].requires_grad_()], targets


@pytest.mark.golden
def test_published_losses(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_criterion.safetensors")
    inputs, targets = published_case(golden)
    criterion = BoxCriterion(weights=WEIGHTS)
    losses = criterion(*inputs, targets, [])
    matches = criterion.match(*inputs[:2], targets)
    firsts = [sum(len(t.labels) for t in targets[:b]) for b in range(len(targets))]
    for stage in range(len(inputs[0])):
        for b, first in enumerate(firsts):
            here = (matches.stage == stage) & (matches.image == b)
            match = part(golden, f"match.{stage}.{b}")
            assert torch.equal(matches.box[here], match["selected"].nonzero()[:, 0])
            assert torch.equal(matches.target[here] - first, match["gt_index"])
    assert len(losses) == len(part(golden, "weighted"))
    for ours, theirs in NAMES.items():
        for suffix in ("", *(f"_{k}" for k in range(len(inputs[0]) - 1))):
            assert_close(losses[ours + suffix], golden[f"weighted.{theirs}{suffix}"], rtol=1e-5, atol=1e-4)
    total = sum(losses.values())
    assert_close(total, golden["total"], rtol=0, atol=1e-4)
    total.backward()
    for x, name in zip(inputs, ("pred_logits", "pred_boxes", "pred_kernels", "mask_features"), strict=True):
        assert_close(x.grad, golden[f"gradient.{name}"], rtol=0, atol=1e-4)


@pytest.mark.golden
def test_published_losses_without_objects(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_criterion.safetensors")
    inputs, targets = published_case(golden)
    losses = BoxCriterion(weights=WEIGHTS)(*inputs, [without_objects(t) for t in targets], [])
    for ours, theirs in NAMES.items():
        weight = WEIGHTS.classes if ours == "loss_ce" else 1
        assert_close(losses[ours], weight * golden[f"empty.{theirs}"], rtol=1e-5, atol=1e-4)
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.golden
def test_published_federated_loss(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_criterion.safetensors")
    inputs, targets = published_case(golden)
    counted = torch.zeros(inputs[0].shape[0], inputs[0].shape[3], dtype=torch.bool)
    for stage, row in enumerate(counted):
        chosen = golden[f"federated.classes.{stage}"]
        row[chosen[chosen < len(row)]] = True  # beyond: "no object", which the published code counts as one of them
    matches = BoxCriterion(weights=WEIGHTS).match(*inputs[:2], targets)
    loss = class_loss(inputs[0], targets, matches, counted) / matches.counts
    assert_close(loss[-1], golden["federated.loss_ce"], rtol=1e-5, atol=1e-4)


def without_objects(target):
    return BoxTarget(target.labels[:0], target.boxes[:0], target.masks[:0], target.extent)


def random_case(counts, num_boxes, num_classes, layers=2):
    torch.manual_seed(0)
    corner = torch.rand(layers, len(counts), num_boxes, 2) * 40
    boxes = torch.cat([corner, corner + torch.rand(corner.shape) * 24], -1)
    inputs = [
        torch.randn(layers, len(counts), num_boxes, num_classes),
        boxes,
        torch.randn(layers, len(counts), num_boxes, num_dynamic_parameters(4)) / 4,
        torch.randn(len(counts), 4, 16, 16),
    ]
    targets = []
    for count in counts:
        corner = torch.randint(0, 30, (count, 2)).float()
        masks = torch.rand(count, 60, 64) > 0.5
        labels = torch.randint(num_classes, (count,))
        box = torch.cat([corner, corner + 20], 1)
        targets.append(BoxTarget(labels, box, masks, torch.tensor([64.0, 60.0, 64.0, 60.0])))
    return [x.requires_grad_() for x in inputs], targets


@pytest.mark.parametrize("num_classes", [1, 2, 3, 80])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 9)])  # 9: more than boxes
def test_any_number_of_objects_gives_finite_gradients_to_all_inputs(counts, num_classes):
    inputs, targets = random_case(counts, 6, num_classes)
    with torch.no_grad():
        inputs[1][0, 0, 0, 2:] = inputs[1][0, 0, 0, :2]  # a box without area
    losses = BoxCriterion(weights=WEIGHTS)(*inputs, targets, [])
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert (losses["loss_dice"] > 0) == (sum(counts) > 0)


def test_federated_classes_are_those_of_the_batch_and_frequent_others():
    _, targets = random_case((2, 3), 6, 80)
    frequencies = torch.full((80,), 1e-6)
    frequencies[40:] = 1
    criterion = BoxCriterion(weights=WEIGHTS, federated_classes=20, frequencies=frequencies)
    first, again, other = (criterion.draw_classes(targets, torch.Generator().manual_seed(k)) for k in (0, 0, 1))
    present = torch.cat([t.labels for t in targets]).unique()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.sum() == 20 and first[present].all() and not first[:40].sum() > (present < 40).sum()
    inputs, _ = random_case((2, 3), 6, 80)
    everything = BoxCriterion(weights=WEIGHTS)(*inputs, targets, [])["loss_ce"]
    some = criterion(*inputs, targets, [torch.Generator().manual_seed(0)])["loss_ce"]
    assert 0 < some < everything


def test_dice_of_equal_and_of_disjoint_masks():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    logits = torch.where(masks, 20.0, -20.0)
    assert_close(dice_loss(logits, masks), torch.zeros(2), atol=1e-4, rtol=0)
    assert_close(dice_loss(-logits, masks), torch.ones(2), atol=1e-4, rtol=0)
