"""The heads: shapes, what they depend on, and the decoder's attention masks."""

import pytest
import torch
import torch.nn.functional as F

from dformer.models.dformer import DFormerHead, MaskDiffusion, pool_queries
from dformer.models.mask2former import Mask2FormerHead
from dformer.models.mask_decoder import MaskDecoder, attention_mask
from dformer.models.pixel_decoder import FPNPixelDecoder, MSDeformAttnPixelDecoder

CHANNELS = (8, 12, 16, 20)


def pixel_decoder(name="msdeform", mask_dim=32):
    if name == "fpn":
        return FPNPixelDecoder(in_channels=CHANNELS, conv_dim=32, mask_dim=mask_dim)
    return MSDeformAttnPixelDecoder(
        in_channels=CHANNELS, conv_dim=32, mask_dim=mask_dim, num_layers=1, num_heads=4, num_points=2, ffn_dim=16
    )


def mask_decoder():
    sizes = {"in_channels": 32, "mask_dim": 32, "hidden_dim": 32, "num_heads": 4, "ffn_dim": 16, "num_layers": 4}
    return MaskDecoder(num_classes=5, num_queries=6, **sizes)


def features(batch=2):
    generator = torch.Generator().manual_seed(0)
    sizes = zip(CHANNELS, (4, 8, 16, 32), strict=True)
    return [torch.randn(batch, c, 64 // s, 96 // s, generator=generator) for c, s in sizes]


def noise(batch=2):
    """A noisy signal within [-0.1, 0.1]."""
    return 0.2 * torch.rand(batch, 6, 16, 24) - 0.1


def dformer(stride=4, name="msdeform"):
    torch.manual_seed(0)
    diffusion = MaskDiffusion.create("cosine", 100, 0.1, "binary", stride)
    return DFormerHead(pixel_decoder=pixel_decoder(name), mask_decoder=mask_decoder(), diffusion=diffusion).eval()


@pytest.mark.parametrize("name", ["msdeform", "fpn"])
def test_predictions_of_every_layer(name):
    head = dformer(name=name)
    predictions = head(features(), noise(), torch.tensor([3, 99]))
    assert len(predictions) == 4
    torch.manual_seed(0)
    learned = Mask2FormerHead(pixel_decoder=pixel_decoder(name), mask_decoder=mask_decoder())
    assert len(learned(features())) == 5  # the queries alone come first
    for prediction in [*predictions, *learned(features())]:
        assert prediction.logits.shape == (2, 6, 6) and prediction.masks.shape == (2, 6, 16, 24)


def test_each_layer_attends_to_the_masks_before_it():
    """Computed at the level's resolution, they are the full masks resized to it."""
    head, attended = dformer(), []
    for layer in head.mask_decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[3]))
    predictions = head(features(), noise(), torch.tensor([3, 99]))
    for i, (mask, prediction) in enumerate(zip(attended[1:], predictions, strict=False), start=1):
        size = [(2, 3), (4, 6), (8, 12)][i % 3]
        logits = F.interpolate(prediction.masks, size, mode="bilinear", align_corners=False).flatten(2)
        certain = logits.abs() > 1e-4
        assert torch.equal(mask[certain], attention_mask(logits)[certain])


def test_fewer_queries_than_trained():
    """Each query has its own embedding, whatever the number of the others."""
    head = dformer()
    queries = head.mask_decoder(torch.zeros(2, 2, 32), head.encode(features()), torch.ones(2, 2, 16, 24))[-1].logits
    assert queries.shape == (2, 2, 6) and not torch.equal(queries[:, 0], queries[:, 1])


def test_masks_and_time_matter():
    head = dformer()
    noisy, t = noise(), torch.tensor([50, 50])
    base = head(features(), noisy, t)[-1].masks
    assert not torch.allclose(base, head(features(), -noisy, t)[-1].masks)
    other = head(features(), noisy, torch.tensor([5, 50]))[-1].masks
    assert not torch.allclose(base[0], other[0])
    torch.testing.assert_close(base[1], other[1])


def test_every_parameter_gets_a_gradient():
    """With find_unused_parameters off, a parameter without one would stop distributed training."""
    for head, args in (
        (dformer(), (features(), noise(), torch.tensor([1, 2]))),
        (Mask2FormerHead(pixel_decoder=pixel_decoder(), mask_decoder=mask_decoder()), (features(),)),
    ):
        sum(p.logits.square().sum() + p.masks.square().sum() for p in head(*args)).backward()
        assert [name for name, p in head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_sampling_encodes_the_image_once(stride, steps):
    head = dformer(stride)
    calls = []
    head.pixel_decoder.register_forward_hook(lambda *_: calls.append(1))
    shape = head.noise_shape(64, 96)
    assert shape == (6, 64 // stride, 96 // stride)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return list(head.sample(features(1), lambda: torch.randn(1, *shape, generator=generator), steps, eta=1.0))

    with torch.no_grad():
        a, b, c = run(0), run(0), run(1)
    assert len(calls) == 3 and len(a) == steps
    assert torch.equal(a[-1].output[-1].masks, b[-1].output[-1].masks)
    assert not torch.equal(a[-1].output[-1].masks, c[-1].output[-1].masks)


def test_queries_are_means_of_the_mask_features_under_the_masks():
    embedding = torch.randn(1, 32, 4, 4)
    masks = torch.zeros(1, 3, 16, 16)
    masks[0, 0, :4, :4] = 1  # one cell
    masks[0, 1] = 0.3  # everywhere alike
    queries = pool_queries(embedding, masks)
    torch.testing.assert_close(queries[0, 0], embedding[0, :, 0, 0])
    torch.testing.assert_close(queries[0, 1], embedding[0].mean((1, 2)))
    assert not queries[0, 2].any()  # nothing under it: zeros, not NaN


def test_an_empty_mask_attends_everywhere():
    seen = attention_mask(torch.tensor([[[1.0, -1.0], [-1.0, -2.0]]]))
    assert seen.tolist() == [[[True, False], [True, True]]]


def test_different_widths_are_an_error():
    diffusion = MaskDiffusion.create("cosine", 10, 0.1, "binary", 4)
    with pytest.raises(ValueError, match="mask_dim=16"):
        DFormerHead(pixel_decoder=pixel_decoder(mask_dim=16), mask_decoder=mask_decoder(), diffusion=diffusion)


def test_corruption_is_of_the_image_alone():
    head = dformer()
    masks = [torch.rand(count, 32, 64) > 0.5 for count in (0, 2, 9)]
    noisy, t = head.corrupt(masks, [torch.Generator().manual_seed(i) for i in range(3)])
    assert noisy.shape == (3, 6, 8, 16) and t.shape == (3,) and t.max() < 100
    alone, t_alone = head.corrupt(masks[2:], [torch.Generator().manual_seed(2)])
    assert torch.equal(alone[0], noisy[2]) and t_alone[0] == t[2]
