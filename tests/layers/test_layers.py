"""Attention and embeddings against PyTorch's own and their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dformer.layers.attention import Attention
from dformer.layers.deformable_attention import DeformableAttention, softmax
from dformer.layers.embedding import sine_position, sine_time
from dformer.layers.resize import resize


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        weight = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight])
        theirs.in_proj_weight.copy_(weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.rand(2, 5, 7) > 0.4
    mask[:, :, 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~mask.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, ours.encode_memory(key, value), mask), expected)


def test_position_embedding():
    embedding = sine_position(3, 5, 16, torch.device("cpu"))
    assert embedding.shape == (16, 3, 5)
    y, x = 2 / (3 + 1e-6) * 2 * math.pi, 4 / (5 + 1e-6) * 2 * math.pi  # cell (1, 3), counted from 1
    for pair in range(4):
        frequency = 10000 ** (-2 * pair / 8)
        for channel, expected in ((2 * pair, math.sin(y * frequency)), (8 + 2 * pair + 1, math.cos(x * frequency))):
            assert embedding[channel, 1, 3].item() == pytest.approx(expected, abs=1e-5)


def test_time_embedding_tells_times_apart():
    embedding = sine_time(torch.arange(1000), 32)
    assert embedding.shape == (1000, 32) and torch.equal(embedding[0], torch.tensor([0.0] * 16 + [1.0] * 16))
    distance = torch.cdist(embedding, embedding) + 10 * torch.eye(1000)
    assert distance.min() > 0.1


def test_deformable_attention_starts_as_a_ring_around_the_reference():
    """Offsets do not depend on the input at first: head m looks in direction m, the p-th point p cells away."""
    layer = DeformableAttention(dim=16, num_heads=4, num_levels=2, num_points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    assert not layer.sampling_offsets.weight.any()
    torch.testing.assert_close(offsets[:, 0], offsets[:, 1])
    torch.testing.assert_close(offsets[1, 0], torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), rtol=0, atol=1e-6)


def test_softmax_is_pytorchs():
    x = torch.randn(4, 3, 12, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(4, 3, 12)
    shifted = x * 20 + 300  # would overflow without the shift
    torch.testing.assert_close(softmax(shifted), shifted.softmax(-1))
    gradients = [
        torch.autograd.grad((function(x) * weight).sum(), x)[0] for function in (softmax, lambda x: x.softmax(-1))
    ]
    torch.testing.assert_close(*gradients)
    assert softmax(x.bfloat16()).dtype == torch.float32


@given(st.tuples(st.integers(1, 24), st.integers(1, 24)), st.tuples(st.integers(1, 24), st.integers(1, 24)))
def test_resize_is_bilinear(size, new_size):
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, new_size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(maps, new_size), expected, rtol=0, atol=1e-6)
    assert resize(maps, size) is maps
