"""Losses of maps of ids."""

import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

from dformer.losses import id_maps
from dformer.losses.criterion import dice_loss, mask_bce
from dformer.losses.id_maps import IdTarget, PointSettings, id_map_losses
from dformer.losses.matcher import LossWeights, matching_cost
from dformer.losses.points import sample_logits, sample_targets, uncertain_points, uncertainty

POINTS = PointSettings(64)


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def target(*ids, void=False):
    """Stripes of these ids; half of the map is void if asked for."""
    stripes = torch.tensor(ids or (0,)).repeat_interleave(16 // max(len(ids), 1)).expand(16, -1).clone()
    stripes[8 if void else 16 :] = 0
    return IdTarget(stripes, torch.tensor(ids, dtype=torch.int64))


def logits_of(targets, sure=8.0):
    ids = torch.stack([t.ids for t in targets])
    return sure * (2 * torch.nn.functional.one_hot(ids, 8).movedim(3, 1).float() - 1)


def test_right_ids_cost_little_and_wrong_ones_much():
    targets = [target(1, 5), target(7, 3, 2, 4)]
    right, wrong = logits_of(targets), logits_of(targets).roll(1, dims=1)
    good, bad = (id_map_losses(x, targets, POINTS, generators(2)) for x in (right, wrong))
    assert set(good) == {"loss_ce", "loss_mask", "loss_dice"}
    assert all(bad[key] > good[key] + 0.3 for key in good) and good["loss_ce"] < 1 < bad["loss_ce"]


def test_void_is_not_learned():
    """Whatever the model says where nothing is annotated, the classification costs the same."""
    targets = [target(1, 5, void=True)]
    logits = logits_of(targets)
    other = logits.clone()
    other[:, :, 10:] = logits_of([target(6, 2)])[:, :, 10:]
    points = torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.5])
    labels = id_maps.sample_ids(targets[0].ids[None], points)
    sums = [id_maps.point_cross_entropy(id_maps.sample_channels(x, points), labels) for x in (logits, other)]
    assert torch.equal(sums[0][0], sums[1][0]) and sums[0][1] == 500
    below = id_maps.sample_ids(targets[0].ids[None], points + torch.tensor([0.0, 0.5]))
    assert id_maps.point_cross_entropy(id_maps.sample_channels(logits, points), below) == (0, 0)


@pytest.mark.parametrize("targets", [[target(), target()], [target(0, 0)], [target(), target(3, 1)]])
def test_finite_without_a_valid_pixel(targets):
    logits = logits_of(targets).requires_grad_()
    sum(id_map_losses(logits, targets, POINTS, generators(2)[: len(targets)]).values()).backward()
    assert logits.grad.isfinite().all()


def test_points_depend_on_the_image_alone():
    """The gradient of an image's sums does not change with the others; only both normalisers do."""
    targets = [target(1, 5), target(7, 3)]
    logits = logits_of(targets, sure=1.0)
    both, first = logits.clone().requires_grad_(), logits[:1].clone().requires_grad_()
    sum(id_map_losses(both, targets, POINTS, generators(2)).values()).backward()
    sum(id_map_losses(first, targets[:1], POINTS, generators(1)).values()).backward()
    torch.testing.assert_close(both.grad[0] * 2, first.grad[0], rtol=1e-4, atol=1e-6)


@pytest.mark.golden
def test_golden_losses(golden_dir):
    golden = load_file(golden_dir / "ldmseg_autoencoder_loss.safetensors")
    logits, ids = golden["logits"].requires_grad_(), golden["targets"]
    count = int(golden["num_points"])
    present = [(b, i) for b, each in enumerate(ids) for i in each.unique().tolist() if i]
    masks = torch.stack([ids[b] == i for b, i in present])
    predicted = torch.stack([logits[b, i] for b, i in present])

    def chosen(at, kind, measure):
        best = measure(at(golden[f"{kind}.candidates"])).topk(int(count * 0.75), dim=1).indices
        points = golden[f"{kind}.candidates"].gather(1, best[..., None].expand(-1, -1, 2))
        return torch.cat([points, golden[f"{kind}.random"]], dim=1)

    points = chosen(lambda p: id_maps.sample_channels(logits, p), "ce", id_maps.top_two_uncertainty)
    assert torch.equal(points, golden["ce.points"])
    labels = id_maps.sample_ids(ids, points)
    assert torch.equal(labels, golden["ce.labels"])
    at_points = id_maps.sample_channels(logits, points)
    total, valid = id_maps.point_cross_entropy(at_points, labels)
    ce = total / valid

    points = chosen(lambda p: sample_logits(predicted, p), "mask", uncertainty)
    assert torch.equal(points, golden["mask.points"])
    truth = sample_targets(masks, torch.arange(len(masks)), points)
    at_points = sample_logits(predicted, points)
    bce, dice = (loss(at_points, truth).sum() / len(masks) for loss in (mask_bce, dice_loss))
    (ce + bce + dice).backward()
    expected = {"ce": ce, "bce": bce, "dice": dice, "mask": bce + dice, "total": ce + bce + dice}
    for name, loss in expected.items():
        torch.testing.assert_close(loss.detach(), golden[f"loss.{name}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.grad, golden["grad_logits"], rtol=0, atol=1e-4)


@pytest.mark.golden
def test_golden_class_agnostic_matching(golden_dir):
    golden = load_file(golden_dir / "ldmseg_matching.safetensors")
    for b, logits in enumerate(golden["logits"]):
        masks, points = golden[f"{b}.masks"], golden[f"{b}.points"]
        at_points = sample_logits(logits, points.expand(len(logits), -1, -1))
        truth = sample_targets(masks, torch.arange(len(masks)), points.expand(len(masks), -1, -1))
        no_class = torch.zeros(len(logits), 2), at_points, torch.zeros(len(masks), dtype=torch.int64), truth
        for name, weights in (("bce", LossWeights(0, 1, 0)), ("dice", LossWeights(0, 0, 1))):
            torch.testing.assert_close(matching_cost(*no_class, weights), golden[f"{b}.cost_{name}"], rtol=0, atol=1e-4)
        rows, columns = linear_sum_assignment(golden[f"{b}.cost"])
        assert sorted(zip(rows, columns, strict=True)) == sorted(
            zip(golden[f"{b}.match_pred"].tolist(), golden[f"{b}.match_target"].tolist(), strict=True)
        )


def test_uncertainty_of_ids_is_the_distance_of_the_two_highest():
    """Two ids meet at x = 0.5, a third is far below everywhere."""

    def logits_at(points):
        x = points[..., 0]
        return torch.stack([x, 1 - x, torch.full_like(x, -9)], dim=1)

    generator = torch.Generator().manual_seed(0)
    points = uncertain_points(logits_at, 2, 400, 3.0, 0.75, generator, id_maps.top_two_uncertainty)
    distance = (points[..., 0] - 0.5).abs()
    assert distance[:, :300].max() < 0.2 and distance[:, 300:].max() > 0.4
