"""Attention, softmax and resizing against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dformer.layers.attention import Attention, scaled_dot_product_attention
from dformer.layers.deformable_attention import DeformableAttention, softmax
from dformer.layers.feed_forward import FeedForward
from dformer.layers.group_norm import GroupNorm
from dformer.layers.resize import resize


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    projections = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight])
    theirs.load_state_dict({"in_proj_weight": projections, "out_proj.weight": ours.out_proj.weight}, strict=False)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.rand(2, 5, 7) > 0.4
    mask[:, :, 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~mask.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, ours.encode_memory(key, value), mask), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision_has_the_gradients_of_single_precision(dtype):
    heads = torch.randn(3, 2, 4, 7, 8).to(dtype)
    gradients = []
    for precise in (False, True):
        parts = [(part.double() if precise else part).requires_grad_() for part in heads.unbind()]
        with torch.autocast("cpu", dtype, enabled=not precise):
            attend = F.scaled_dot_product_attention if precise else scaled_dot_product_attention
            attended = attend(*parts)
        assert attended.dtype == (torch.float64 if precise else dtype)
        gradients.append(torch.autograd.grad(attended.sum(), parts))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_is_pytorchs(memory_format):
    maps = torch.randn(2, 8, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    ours, theirs = GroupNorm(4, 8), nn.GroupNorm(4, 8)
    weight = torch.randn(2, 8, 5, 6)
    for norm in (ours, theirs):
        (norm(maps) * weight).sum().backward()
        norm.of_maps, maps.grad = maps.grad, None
    torch.testing.assert_close(ours(maps), theirs(maps))
    torch.testing.assert_close(ours.of_maps, theirs.of_maps)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert ours(maps).is_contiguous(memory_format=memory_format)


def test_deformable_attention_starts_as_a_ring_around_the_reference():
    """Offsets do not depend on the input at first: head m looks in direction m, the p-th point p cells away."""
    layer = DeformableAttention(dim=16, num_heads=4, num_levels=2, num_points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    assert not layer.sampling_offsets.weight.any()
    torch.testing.assert_close(offsets[:, 0], offsets[:, 1])
    torch.testing.assert_close(offsets[1, 0], torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_does_not_move_the_points(dtype):
    """Weights divided by a level's extent are subnormal in float16, which moved points by a hundredth of a cell."""
    torch.manual_seed(0)
    layer = DeformableAttention(dim=32, num_heads=4, num_levels=2, num_points=3)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.01)
    query, extent = torch.randn(1, 9, 32), torch.tensor([[[128.0, 128.0]], [[64.0, 64.0]]])
    inputs = query, torch.rand(9, 2), extent
    with torch.autocast("cpu", dtype):
        locations = layer.sampling_locations(*inputs)
    assert locations.dtype == torch.float32 and torch.equal(locations, layer.sampling_locations(*inputs))


def test_feed_forward_has_second_derivatives():
    layer = FeedForward(4, 8).double()
    torch.autograd.gradgradcheck(layer, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_softmax_is_pytorchs():
    x = torch.randn(4, 3, 12, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(4, 3, 12)
    shifted = x * 20 + 300  # would overflow without the shift
    torch.testing.assert_close(softmax(shifted), shifted.softmax(-1))
    torch.testing.assert_close(*(torch.autograd.grad((y * weight).sum(), x) for y in (softmax(x), x.softmax(-1))))
    assert softmax(x.bfloat16()).dtype == torch.float32


@given(st.tuples(st.integers(1, 24), st.integers(1, 24)), st.tuples(st.integers(1, 24), st.integers(1, 24)))
def test_resize_is_bilinear(size, new_size):
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, new_size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(maps, new_size), expected, rtol=0, atol=1e-6)
    assert resize(maps, size) is maps
