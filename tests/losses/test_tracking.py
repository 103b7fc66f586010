"""The contrastive loss of a tracking branch."""

import math

import pytest
import torch

from dformer.losses.tracking import contrastive_losses


def same_of(*objects):
    numbers = torch.tensor(objects)
    return numbers[:, None] == numbers


def test_it_is_the_sum_over_all_pairs():
    embeddings = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    objects = (7, 7, 8, 8, 9)
    loss, aux = contrastive_losses(embeddings, same_of(*objects))
    rows = list(zip(embeddings, objects, strict=True))
    expected, errors = [], {True: [], False: []}
    for i, (v, own) in enumerate(rows):
        positive = [p for k, (p, other) in enumerate(rows) if other == own and k != i]
        negative = [n for n, other in rows if other != own]
        if positive:
            expected.append(math.log1p(sum(math.exp(v @ n - v @ p) for p in positive for n in negative)))
        for k, (u, other) in enumerate(rows):
            if k != i:
                errors[own == other].append((torch.cosine_similarity(v, u, dim=0).item() - (own == other)) ** 2)
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert aux.item() == pytest.approx(sum(sum(e) / len(e) for e in errors.values()) / 2, rel=1e-5)


def test_objects_that_are_known_cost_nothing_and_strangers_something():
    apart = 20 * torch.eye(3)[[0, 1, 0, 1, 2]]
    loss, aux = contrastive_losses(apart, same_of(0, 1, 0, 1, 2))
    assert loss < 1e-6 and aux < 1e-6
    loss, aux = contrastive_losses(apart, same_of(0, 1, 1, 0, 2))
    assert loss > 10 and aux > 0.5


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_pairs_there_is_a_gradient_that_is_finite(count):
    embeddings = torch.randn(count, 4, requires_grad=True)
    loss, _ = contrastive_losses(embeddings, torch.eye(count, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not embeddings.grad.any()
