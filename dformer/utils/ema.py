"""An exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average the weights of a model: a <- decay a + (1 - decay) w after each step.

    w are parameters and floating-point buffers; other buffers (counts) are copied. The first average is the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of `model` after a step."""
        now = model.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in floats], [now[name] for name in floats], 1 - self.decay)
        for name in now.keys() - floats:
            self.weights[name].copy_(now[name])

    def restart(self, model: nn.Module) -> None:
        """Restart the average from the weights of `model`."""
        self.load_state_dict(model.state_dict())

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give `model` the averaged weights within this context."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Restore averaged weights; a ValueError lists the names that differ from the model's."""
        if weights.keys() != self.weights.keys():
            raise ValueError(f"averaged weights do not fit the model: {weights.keys() ^ self.weights.keys()}")
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)
