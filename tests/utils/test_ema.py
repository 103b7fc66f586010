"""The moving average of the weights, by its definition."""

import pytest
import torch
from torch import nn

from dformer.utils.ema import MovingAverage


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_is_what_its_formula_says():
    line = model()
    average = MovingAverage(line, 0.9)
    expected = {name: tensor.clone() for name, tensor in line.state_dict().items()}
    for _ in range(5):
        line(torch.randn(4, 3))  # statistics of the norm
        with torch.no_grad():
            for parameter in line.parameters():
                parameter += torch.randn_like(parameter)
        average.update(line)
        for name, now in line.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * now if now.is_floating_point() else now.clone()
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert average.state_dict()["1.num_batches_tracked"] == 5


def test_it_is_applied_and_taken_back():
    line = model()
    average = MovingAverage(line, 0.5)
    with torch.no_grad():
        line[0].weight += 1
    own = line[0].weight.clone()
    with pytest.raises(ZeroDivisionError), average.applied(line):
        assert torch.equal(line[0].weight, average.state_dict()["0.weight"])
        assert not torch.equal(line[0].weight, own)
        1 / 0  # noqa: B018
    assert torch.equal(line[0].weight, own)
    average.restart(line)
    assert torch.equal(average.state_dict()["0.weight"], own)


def test_another_models_average_is_refused():
    with pytest.raises(ValueError, match=r"1\.weight"):
        MovingAverage(model(), 0.5).load_state_dict(nn.Linear(3, 2).state_dict())
