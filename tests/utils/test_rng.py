"""Parameters whose initial values another process sends are not drawn."""

import pytest
import torch
from torch import Tensor, nn

from dformer.utils.rng import SkipInit

DRAWN = [nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.orthogonal_]
DRAWN += [nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_]


@pytest.mark.parametrize("initialize", DRAWN, ids=lambda function: function.__name__)
def test_what_is_drawn_for_a_parameter_stays_finite(initialize) -> None:
    parameter = nn.Parameter(torch.full((8, 8), torch.nan))
    with SkipInit():
        assert initialize(parameter) is parameter
    assert parameter.isfinite().all() and parameter.requires_grad


def test_layers_draw_nothing() -> None:
    state = torch.get_rng_state()
    with SkipInit():
        layers = [nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.Embedding(4, 4), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.any() for layer in layers for parameter in layer.parameters())
    assert nn.Linear(4, 4).weight.all()


def test_constants_and_other_tensors_have_their_values() -> None:
    with SkipInit():
        norm, bias = nn.BatchNorm2d(4), nn.init.constant_(nn.Parameter(torch.empty(4)), -4.6)
        others = [torch.randn(4), torch.empty(4).normal_(), nn.init.uniform_(torch.empty(4), 1, 2)]
    assert torch.equal(norm.weight, torch.ones(4)) and torch.equal(bias, torch.full((4,), -4.6))
    assert all(tensor.all() for tensor in others)


@pytest.mark.parametrize("bounds", [(0.1, 10.0), (2.0, 3.0), (-2.0, 2.0)])
def test_a_draw_that_is_repeated_until_it_is_within_bounds_ends(bounds: tuple[float, float]) -> None:
    with SkipInit():
        drawn: Tensor = nn.init.trunc_normal_(nn.Parameter(torch.empty(100)), a=bounds[0], b=bounds[1])
    assert drawn.isfinite().all()
