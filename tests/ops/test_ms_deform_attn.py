"""The operator against the published implementation's tensors, and against its definition."""

import pytest
import torch
from safetensors.torch import load_file

from dformer.ops import ms_deform_attn


@pytest.mark.golden
def test_golden(golden_dir):
    golden = load_file(golden_dir / "ms_deform_attn.safetensors")
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (golden[name].requires_grad_() for name in names)
    output = ms_deform_attn(value, golden["spatial_shapes"], locations, weights)
    torch.testing.assert_close(output, golden["output"], rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(output, (value, locations, weights), golden["grad_output"])
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(gradient, golden[f"grad_{name}"], rtol=0, atol=1e-8)


def test_definition():
    """At the centre of a cell the value of that cell, outside zero, half-way between two cells their mean."""
    value = torch.arange(6, dtype=torch.float64).view(1, 6, 1, 1) + 1  # 1 2 3 / 4 5 6
    shapes = torch.tensor([[2, 3]])
    points = torch.tensor(
        [[1 / 6, 1 / 4], [5 / 6, 3 / 4], [2 / 6, 1 / 4], [2.0, 0.5], [0.0, 1 / 4]], dtype=torch.float64
    )
    output = ms_deform_attn(value, shapes, points.view(1, 5, 1, 1, 1, 2), torch.ones(1, 5, 1, 1, 1).double())
    torch.testing.assert_close(output.flatten(), torch.tensor([1.0, 6.0, 1.5, 0.0, 0.5]).double())
