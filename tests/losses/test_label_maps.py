"""Losses over the pixels of a map."""

import pytest
import torch
from safetensors.torch import load_file

from dformer.losses.label_maps import instance_weights, l2_loss, sigmoid_loss, softmax_loss


def test_small_instances_weigh_more():
    ids = torch.tensor([[[0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 2, 2, 2, 2, 3, 3]]])
    assert (instance_weights(ids, 4, 0.0) == 1).all()
    weights = instance_weights(ids, 4, 1.0)
    assert weights.mean().item() == pytest.approx(1)
    one, two = weights[0, 0, 7].item(), weights[0, 1, 7].item()
    assert one / two == pytest.approx(3 / 2)  # 1 / (1 + 1) against 1 / (2 + 1)


@pytest.mark.golden
def test_golden_losses(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_loss.safetensors")
    labels = golden["label_map"].movedim(-1, 1).long()
    num_ids = golden["config.max_instances"].item()
    for key in (key for key in golden if key.startswith("weight.")):
        weights = instance_weights(labels[:, 1], num_ids, float(key.removeprefix("weight.")))
        torch.testing.assert_close(weights, golden[key], rtol=0, atol=1e-5)

    weights, bits, noise = golden["weight.0.2"], golden["bits"].movedim(-1, 1), golden["noise"].movedim(-1, 1)
    losses = {
        "x_softmax_xent": lambda x: softmax_loss(x.movedim(-1, 1).unbind(-1), labels, weights),
        "x_sigmoid_xent": lambda x: sigmoid_loss(x.movedim(-1, 1), (bits > 0).float(), weights),
        "x": lambda x: l2_loss(x.movedim(-1, 1), bits, weights),
        "eps": lambda x: l2_loss(x.movedim(-1, 1), noise),
    }
    for kind, loss in losses.items():
        output = golden[f"{kind}.denoise_out"].requires_grad_()
        value = loss(output)
        torch.testing.assert_close(value, golden[f"{kind}.loss"].squeeze(), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(value, output)
        torch.testing.assert_close(gradient, golden[f"{kind}.grad"], rtol=0, atol=1e-6)
