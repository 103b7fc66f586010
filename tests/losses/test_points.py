"""Sampling at points."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dformer.losses.points import sample_logits, sample_targets, uncertain_points


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_targets_are_sampled_as_logits_are(count, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height, width, generator=generator) > 0.5
    index = torch.randint(count, (6,), generator=generator)
    points = (torch.rand(6, 5, 2, generator=generator) * 1.4 - 0.2).clamp(0, 1)  # some on the rim
    torch.testing.assert_close(
        sample_targets(masks, index, points), sample_logits(masks[index].float(), points), rtol=0, atol=1e-4
    )


def test_uncertain_points_lie_on_the_boundary():
    """Logits x - 0.5: of many candidates those near x = 0.5 are taken, and a quarter is uniform."""
    points = uncertain_points(lambda p: p[..., 0] - 0.5, 2, 400, 3.0, 0.75, torch.Generator().manual_seed(0))
    assert points.shape == (2, 400, 2) and points.min() >= 0 and points.max() <= 1
    distance = (points[..., 0] - 0.5).abs()
    assert distance[:, :300].max() < 0.2 and distance[:, 300:].max() > 0.4
