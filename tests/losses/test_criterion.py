"""The loss as a whole: what it rewards, and the awkward batches."""

import pytest
import torch

from dformer.losses.criterion import Criterion, MaskProducts, Target
from dformer.losses.matcher import LossWeights, assign, tie_cost
from dformer.losses.points import sample_logits
from dformer.signals.hints import FREE, NO_OBJECT

NUM_CLASSES = 3


def build(**changes) -> Criterion:
    settings = {
        "num_classes": NUM_CLASSES,
        "weights": LossWeights(2.0, 5.0, 5.0),
        "cost_weights": LossWeights(2.0, 5.0, 5.0),
        "no_object_weight": 0.1,
        "num_points": 256,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
    }
    return Criterion(**{**settings, **changes})


@pytest.fixture
def criterion():
    return build()


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def target(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    for i in range(count):
        y, x = torch.randint(20, (2,), generator=generator).tolist()
        masks[i, y : y + 9, x : x + 12] = True
    return Target(torch.randint(NUM_CLASSES, (count,), generator=generator), masks)


def prediction(targets, queries, sure=12.0):
    """Perfect class and mask logits for the first queries of each image, "no object" for the others."""
    logits = torch.zeros(len(targets), queries, NUM_CLASSES + 1)
    masks = torch.full((len(targets), queries, 32, 32), -sure)
    logits[..., NUM_CLASSES] = sure
    for b, (labels, truth, _) in enumerate(targets):
        for n in range(min(queries, len(labels))):
            logits[b, n] = 0
            logits[b, n, labels[n]] = sure
            masks[b, n][truth[n]] = sure
    return logits, masks


def loss(criterion, layers, targets, generators):
    """Of predictions given as logits (B, N, K + 1) and masks (B, N, h, w) a layer."""
    logits, masks = zip(*layers, strict=True)
    queries = masks[0].shape[1]
    choice = torch.eye(len(masks) * queries).view(len(masks), 1, queries, -1).expand(-1, len(targets), -1, -1)
    pixels = torch.cat(masks, dim=1).permute(0, 2, 3, 1)
    return criterion(torch.stack(logits), MaskProducts(choice, pixels.unbind()), targets, generators)


def test_perfect_predictions_cost_nothing_and_wrong_ones_something(criterion):
    targets = [target(3), target(1, seed=5)]
    logits, masks = prediction(targets, queries=5)
    perfect = loss(criterion, [(logits, masks)], targets, generators(2))
    assert set(perfect) == {"loss_ce", "loss_mask", "loss_dice"}
    # Bilinear points on a mask's edge lie between inside and outside, so that a little remains.
    assert perfect["loss_ce"] < 1e-3 and perfect["loss_dice"] < 1
    wrong_class = loss(criterion, [(logits.roll(1, dims=2), masks)], targets, generators(2))
    assert wrong_class["loss_ce"] > 1
    wrong_mask = loss(criterion, [(logits, masks.roll(10, dims=3))], targets, generators(2))
    assert wrong_mask["loss_dice"] > perfect["loss_dice"] + 1 and wrong_mask["loss_mask"] > perfect["loss_mask"] + 1


@pytest.mark.parametrize(("class_cost", "is_right"), [(0.0, False), (20.0, True)])
def test_the_matching_weighs_classes_by_itself(class_cost, is_right):
    """Of two queries, one has the class and the other the mask."""
    weights = {"weights": LossWeights(1.0, 1.0, 1.0), "cost_weights": LossWeights(class_cost, 1.0, 1.0)}
    criterion = build(**weights, num_points=64)
    truth = target(1)
    logits, masks = prediction([truth], 2)
    logits[0, 1], masks[0] = logits[0, 0].roll(1), masks[0].flip(0)
    losses = loss(criterion, [(logits, masks)], [truth], generators(1))
    assert (losses["loss_mask"] > 0.3) == is_right


def test_classes_weigh_what_the_weights_say():
    def loss_ce(weights):
        equal = LossWeights(1.0, 1.0, 1.0)
        settings = {"weights": equal, "cost_weights": equal, "no_object_weight": 1.0, "num_points": 64}
        criterion = build(**settings, class_weights=weights)
        truth = target(2)._replace(labels=torch.tensor([0, 1]))
        logits, masks = prediction([truth], 2)
        logits[0, 1] = torch.tensor([5.0, 0.0, 0.0, 0.0])  # the second object is taken for the first class
        return loss(criterion, [(logits, masks)], [truth], generators(1))["loss_ce"].item()

    assert loss_ce((1.0, 3.0, 1.0)) == pytest.approx(1.5 * loss_ce(()), rel=1e-3)  # 3 of 4 parts instead of 1 of 2
    assert loss_ce((1.0, 1.0, 1.0)) == loss_ce(())


def test_order_of_queries_does_not_matter(criterion):
    targets = [target(3)]
    logits, masks = prediction(targets, queries=5, sure=2.0)
    a = loss(criterion, [(logits, masks)], targets, generators(1))
    b = loss(criterion, [(logits.flip(1), masks.flip(1))], targets, generators(1))
    torch.testing.assert_close(a["loss_ce"], b["loss_ce"])
    torch.testing.assert_close(sum(a.values()), sum(b.values()), rtol=0.1, atol=0)  # points are others


def test_layers_are_named_as_published(criterion):
    targets = [target(2)]
    layers = [prediction(targets, queries=4, sure=sure) for sure in (1.0, 1.0, 12.0)]
    losses = loss(criterion, layers, targets, generators(1))
    assert set(losses) == {f"loss_{k}{s}" for k in ("ce", "mask", "dice") for s in ("", "_0", "_1")}
    assert losses["loss_ce"] < losses["loss_ce_0"] and losses["loss_mask"] < losses["loss_mask_1"]


@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 3), (7, 1), (5, 5)])
def test_any_number_of_objects_gives_finite_gradients_everywhere(criterion, counts):
    """Images without objects, and with more than there are queries (5)."""
    targets = [target(count, seed=i) for i, count in enumerate(counts)]
    logits = torch.randn(2, len(counts), 5, NUM_CLASSES + 1, requires_grad=True)
    masks = torch.randn(2, len(counts), 5, 8, 8, requires_grad=True)
    sum(loss(criterion, zip(logits, masks, strict=True), targets, generators(len(counts))).values()).backward()
    assert logits.grad.isfinite().all() and masks.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    assert (masks.grad.abs().sum() > 0) == (sum(counts) > 0)


def test_an_image_does_not_depend_on_its_batch(criterion):
    """Matching and points of an image are its own; only the normalisers are shared."""
    first, second = target(2, seed=1), target(2, seed=2)
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 5, NUM_CLASSES + 1), torch.randn(2, 5, 8, 8)
    together = loss(criterion, [(logits, masks)], [first, second], generators(2))
    one = loss(criterion, [(logits[:1], masks[:1])], [first], generators(2)[:1])
    two = loss(criterion, [(logits[1:], masks[1:])], [second], generators(2)[1:])
    for key in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(together[key], (one[key] + two[key]) / 2)


def test_assignment_is_optimal():
    cost = torch.tensor([[[1.0, 5.0], [0.0, 1.0], [9.0, 9.0]], [[5.0, 0.0], [1.0, 5.0], [0.0, 9.0]]])
    ((rows, columns),), bad_layers = assign([cost])
    assert (rows.tolist(), columns.tolist(), bad_layers) == ([[0, 1], [0, 2]], [[0, 1], [1, 0]], [])
    ((rows, columns),), _ = assign([torch.zeros(2, 3, 0)])
    assert rows.shape == columns.shape == (2, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_costs_that_are_not_finite_are_assigned_and_reported(bad):
    good = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
    cost = good.clone()
    cost[1] = bad
    (first, bad_layers), (second, _) = (assign([good, cost]) for _ in range(2))
    assert bad_layers == [1]
    for pair, again, expected in zip(first, second, assign([good, good])[0], strict=True):
        assert all(map(torch.equal, pair, again))
        assert all(torch.equal(a[0], b[0]) for a, b in zip(pair, expected, strict=True))


def test_the_loss_of_a_layer_with_a_bad_cost_is_no_number(criterion):
    """Even where losses are finite: here only the cost overflows."""
    truth = [target(2)]
    logits, masks = prediction(truth, 4)
    assert all(torch.isfinite(x) for x in loss(criterion, [(logits, masks)] * 2, truth, generators(1)).values())
    huge = masks.clone()
    huge[0, 3] = 3e38  # softplus of 256 points: more than a float holds; unmatched, so that no loss sees it
    losses = loss(criterion, [(logits, huge), (logits, masks)], truth, generators(1))
    assert {name for name, value in losses.items() if not torch.isfinite(value)} >= {"loss_ce_0"}
    assert torch.isfinite(losses["loss_ce"])


def test_products_are_the_masks():
    """Those of some queries, and the values at some points, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    pixels = torch.randn(3, 4, 6, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    masks = torch.einsum("lbne,behw->lbnhw", queries, pixels)
    products = MaskProducts(queries, pixels.permute(0, 2, 3, 1).unbind())
    rows = torch.tensor([[4, 0], [1, 1]])
    expected = torch.stack([masks[0, 2, 4], masks[0, 2, 0], masks[1, 2, 1], masks[1, 2, 1]])
    some = products.of_queries(2, rows)
    torch.testing.assert_close(some, expected.float())
    points = torch.rand(7, 2, generator=generator)
    for layer, values in zip(masks[:, 1], products.at_points(1, points), strict=True):
        torch.testing.assert_close(values, sample_logits(layer.float(), points.expand(5, -1, -1)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(x.float().sum(), (queries, pixels)) for x in (some, expected)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matching_and_losses_are_in_float32_under_autocast(criterion, dtype):
    """A certain "no" over a mask of most of the image, summed over the published number of points."""
    criterion.num_points = 12544
    large = torch.zeros(2, 32, 32, dtype=torch.bool)
    large[0, :24], large[1, 20:] = True, True
    targets = [Target(torch.tensor([0, 1]), large)]
    layers = [(torch.randn(1, 4, NUM_CLASSES + 1, generator=generators(1)[0]), torch.full((1, 4, 32, 32), -12.0))]
    expected = loss(criterion, layers, targets, generators(1))
    with torch.autocast("cpu", dtype):
        found = loss(criterion, layers, targets, generators(1))
    assert all(value.isfinite() for value in found.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


def test_slots_with_an_owner_are_matched_with_it_and_with_no_other():
    """Whatever the cost; the objects that nobody owns go to the free slots."""
    owner = torch.tensor([2, NO_OBJECT, FREE, 0, FREE])
    for seed in range(5):
        cost = 100 * torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(seed))
        ((rows, columns),), _ = assign([cost + tie_cost(owner, 4)])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            found = dict(zip(row, column, strict=True))
            assert found[0] == 2 and found[3] == 0 and {found[2], found[4]} == {1, 3}


def test_a_tied_slot_pays_for_another_answer(criterion):
    """The second query shows the first object, and has to answer for the second."""
    targets = [target(2)]
    logits, masks = prediction(targets, queries=4)
    tied = [targets[0]._replace(owner=torch.tensor([0, 1, FREE, FREE]))]
    swapped = [targets[0]._replace(owner=torch.tensor([1, 0, FREE, FREE]))]
    free, right, wrong = (loss(criterion, [(logits, masks)], t, generators(1)) for t in (targets, tied, swapped))
    torch.testing.assert_close(right, free)
    assert wrong["loss_mask"] > right["loss_mask"] + 1
