"""An exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """a <- decay a + (1 - decay) w after each step, for each parameter w and each buffer of floating point.

    With a decay of 0.9999 the last 10,000 steps count. Other buffers (counts) are copied.

    Args:
        model: its state dict at this moment is the first average.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` after a step."""
        now = model.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in floats], [now[name] for name in floats], 1 - self.decay)
        for name in now.keys() - floats:
            self.weights[name].copy_(now[name])

    def restart(self, model: nn.Module) -> None:
        """Begin anew with the weights of `model`."""
        self.load_state_dict(model.state_dict())

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, `model` has the averaged weights."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by the model's names."""
        return self.weights

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned. Names and shapes must be those of the model."""
        if weights.keys() != self.weights.keys():
            raise ValueError(f"the average has other names than the model: {weights.keys() ^ self.weights.keys()}")
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)
