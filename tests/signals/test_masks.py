"""Ground-truth masks as a signal."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dformer.signals import masks as m


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_masks(count, height=12, width=20):
    return torch.rand(count, height, width, generator=generator(count)) > 0.6


@given(st.floats(0.01, 2), st.integers(0, 99))
def test_signal_and_back(scale, seed):
    unit = torch.rand(30, generator=generator(seed))
    torch.testing.assert_close(m.to_unit(m.to_signal(unit, scale), scale), unit, rtol=0, atol=1e-5)
    assert m.to_unit(torch.tensor([-9.0, 9.0]), scale).tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 1, 5, 8, 13])
def test_always_n_masks(count):
    """Fewer are padded with random ones, all kept; of more a subset is taken, none twice."""
    truth = some_masks(count).float()
    padded = m.pad_and_shuffle(truth, 8, generator())
    assert padded.shape == (8, 12, 20)
    found = [next((i for i, mask in enumerate(truth) if torch.equal(mask, p)), None) for p in padded]
    kept = [i for i in found if i is not None]
    assert len(set(kept)) == len(kept) == min(count, 8)
    for mask in (p for p, i in zip(padded, found, strict=True) if i is None):
        assert set(mask.unique().tolist()) == {0.0, 1.0} and 0.3 < mask.mean() < 0.7


def test_order_is_shuffled():
    truth = some_masks(8).float()
    orders = {tuple(m.pad_and_shuffle(truth, 8, generator(seed)).mean((1, 2)).tolist()) for seed in range(5)}
    assert len(orders) > 1


def test_downsample_is_the_share_inside():
    truth = torch.zeros(1, 5, 6, dtype=torch.bool)
    truth[0, :2, :4] = True
    expected = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(m.downsample(truth, 4), expected)
    assert torch.equal(m.downsample(truth, 1), truth.float())


def test_random_encoding_keeps_the_mask():
    truth = some_masks(3)
    encoded = m.encode_random(truth.float(), generator())
    assert (encoded[truth] >= 0.5).all() and (encoded[~truth] <= 0.5).all()
    assert encoded[truth].std() > 0.1


@pytest.mark.parametrize("encoding", ["binary", "random"])
def test_noise_masks(encoding):
    masks = some_masks(3).float()

    def noise(alpha_bar_t, seed=0):
        alpha_bar_t = torch.tensor(alpha_bar_t)
        return m.noise_masks(masks, alpha_bar_t=alpha_bar_t, scale=0.1, encoding=encoding, generator=generator(seed))

    assert torch.equal(noise(0.5), noise(0.5)) and not torch.equal(noise(0.5), noise(0.5, seed=1))
    assert ((m.to_unit(noise(1.0), 0.1) >= 0.5) == masks.bool()).all(), "without noise the masks themselves"
    assert abs(noise(0.0).mean()) < 0.1 and abs(noise(0.0).std() - 1) < 0.1, "nothing else than noise"


@given(st.floats(0.1, 2), st.floats(0.01, 0.99))
def test_log_odds_compare_the_densities(scale, alpha_bar):
    x_t = torch.linspace(-2, 2, 9).view(1, 1, 3, 3)
    inside, outside = (
        torch.distributions.Normal(sign * scale * alpha_bar**0.5, (1 - alpha_bar) ** 0.5).log_prob(x_t)
        for sign in (1, -1)
    )
    found = m.log_odds(x_t, torch.tensor([alpha_bar], dtype=torch.float64), scale)
    torch.testing.assert_close(found, inside - outside, rtol=1e-3, atol=1e-3)
