"""The moving average of the weights, by its definition."""

import pytest
import torch
from torch import nn

from dformer.utils.ema import MovingAverage


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_follows_its_formula():
    network = model()
    average = MovingAverage(network, 0.9)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(5):
        network(torch.randn(4, 3))  # statistics of the norm
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += torch.randn_like(parameter)
        average.update(network)
        for name, now in network.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * now if now.is_floating_point() else now.clone()
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert average.state_dict()["1.num_batches_tracked"] == 5


def test_it_is_applied_and_undone():
    network = model()
    average = MovingAverage(network, 0.5)
    with torch.no_grad():
        network[0].weight += 1
    own = network[0].weight.clone()
    with pytest.raises(ZeroDivisionError), average.applied(network):
        assert torch.equal(network[0].weight, average.state_dict()["0.weight"])
        assert not torch.equal(network[0].weight, own)
        1 / 0  # noqa: B018
    assert torch.equal(network[0].weight, own)
    average.restart(network)
    assert torch.equal(average.state_dict()["0.weight"], own)


def test_another_models_average_is_refused():
    with pytest.raises(ValueError, match=r"1\.weight"):
        MovingAverage(model(), 0.5).load_state_dict(nn.Linear(3, 2).state_dict())
