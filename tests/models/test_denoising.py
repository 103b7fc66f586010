"""DFormer's head with denoising assignment: each slot has its own time and its own evidence."""

from itertools import count

import torch

from dformer.models.dformer import DFormerHead, MaskDiffusion
from dformer.models.mask_decoder import MaskDecoder
from dformer.signals.hints import FREE, NO_OBJECT, Hints, given_hints, mask_iou
from tests.models.test_heads import features, pixel_decoder

N, LAST = 6, 99


def head() -> DFormerHead:
    torch.manual_seed(0)
    sizes = {"in_channels": 32, "mask_dim": 32, "hidden_dim": 32, "num_heads": 4, "ffn_dim": 16, "num_layers": 2}
    decoder = MaskDecoder(num_classes=5, num_queries=N, num_evidence=2, **sizes)
    diffusion = MaskDiffusion.create("cosine", LAST + 1, 1.0, "binary", 4, "denoising")
    return DFormerHead(pixel_decoder=pixel_decoder(), mask_decoder=decoder, diffusion=diffusion).eval()


def halves() -> torch.Tensor:
    """Two masks (2, 16, 24), left and right."""
    masks = torch.zeros(2, 16, 24)
    masks[0, :, :12], masks[1, :, 12:] = 1, 1
    return masks


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, N, 16, 24, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sampled(model, hints, times, **asked):
    seeds = count()
    memory = model.encode(features(1))
    return list(model.sample_hints(memory, hints, lambda: noise(next(seeds)), times, 1.0, **asked))


def test_a_mask_begins_with_what_its_own_slot_says():
    """What other slots say reaches it by attention alone, after the first evidence has been weighed."""
    model = head()
    memory, t = model.encode(features(1)), torch.full((1, N), 10)
    x_t = 0.1 * noise()
    x_t[0, :2] += 2 * halves() - 1
    masks = model.denoise(memory, x_t, t)[0].masks[0] > 0
    own = mask_iou(masks[:2], halves() > 0.5)
    assert own[0, 0] > own[0, 1] + 0.5 and own[1, 1] > own[1, 0] + 0.5


def test_a_hint_may_be_in_any_slot():
    """Of a free slot the place counts, as what it has learned to look for."""
    model, order = head(), torch.tensor([2, 0, 1, 3, 4, 5])
    memory, x_t = model.encode(features(1)), noise()
    t = torch.tensor([[10, 10, 10, LAST, LAST, LAST]])
    expected = model.denoise(memory, x_t, t)[-1].logits
    torch.testing.assert_close(model.denoise(memory, x_t[:, order], t)[-1].logits, expected[:, order])
    order = torch.tensor([0, 1, 2, 5, 4, 3])
    free = model.denoise(memory, x_t[:, order], t)[-1].logits
    assert (free - expected[:, order]).abs().max() > 1e-3


def test_at_the_last_time_there_is_no_evidence():
    model = head()
    memory, t = model.encode(features(1)), torch.full((1, N), LAST)
    before = model.denoise(memory, noise(), t)[-1].masks
    with torch.no_grad():
        model.mask_decoder.evidence_weight.bias.fill_(2)
    assert (model.denoise(memory, noise(), t)[-1].masks - before).abs().max() < 0.1


def test_each_slot_has_its_own_time():
    model = head()
    memory, t = model.encode(features(1)), torch.full((1, N), LAST)
    other = t.clone()
    other[0, 2] = 5
    same = model.time_modulation(t)[0] == model.time_modulation(other)[0]
    assert same.all(2).squeeze().tolist() == [k != 2 for k in range(N)]
    assert model.denoise(memory, noise(), other)[-1].masks.isfinite().all()


def test_known_masks_stay_and_others_are_replaced():
    model, hints = head(), given_hints([halves()], N)
    known = sampled(model, hints, [LAST, 60, 30], known_time=0)
    for step in known:
        unit = (step.x_t[0, :2] > 0).float()
        assert (unit == halves()).float().mean() > 0.99  # hardly noisy at time 0
    refined = sampled(model, hints, [60, 0])
    assert torch.equal((refined[1].x_t[0, :2] > 0), refined[0].x0[0, :2] > 0)  # at time 0: what was found


def test_free_slots_are_noise_and_found_masks_are_not():
    model, hints = head(), Hints(torch.zeros(1, N, 16, 24), torch.full((1, N), FREE))
    with torch.no_grad():
        model.mask_decoder.class_embed.bias[0] = 20  # everything is sure
    first, second = sampled(model, hints, [LAST, 0])
    assert torch.allclose(first.x_t, noise(0), atol=0.1)
    shown = [torch.equal(a > 0, b > 0) for a, b in zip(second.x_t[0], first.x0[0], strict=True)]
    assert any(shown)
    model.mask_decoder.class_embed.bias.data[-1] = 50  # nothing is
    _, second = sampled(model, hints, [LAST, 0])
    assert torch.allclose(second.x_t, noise(1), atol=0.1)


def test_the_hints_of_training_have_the_times_of_their_slots():
    model = head()
    truth = torch.zeros(2, 64, 96, dtype=torch.bool)
    truth[0, :32], truth[1, 32:] = True, True
    with torch.no_grad():
        found = model.denoise(model.encode(features(1)), noise(), torch.full((1, N), LAST))[-1]
    owners = []
    for seed in range(8):
        x_t, t, (owner,) = model.corrupt_hints(found, [truth], 0.5, [torch.Generator().manual_seed(seed)])
        assert x_t.shape == (1, N, 16, 24) and (t[0][owner == FREE] == LAST).all()
        assert len(t[0][owner != FREE].unique()) <= 1
        owners += owner.tolist()
    assert {0, 1, FREE} <= set(owners) <= {0, 1, FREE, NO_OBJECT}


def test_hints_are_true_or_the_models_own_by_their_share():
    model = head()
    truth = torch.zeros(2, 64, 96, dtype=torch.bool)
    truth[0, :32], truth[1, 32:] = True, True
    with torch.no_grad():
        model.mask_decoder.class_embed.bias[-1] = 50  # by itself, the model finds nothing
        found = model.denoise(model.encode(features(1)), noise(), torch.full((1, N), LAST))[-1]
    for share, shown in ((0.0, {0, 1, FREE}), (1.0, {FREE})):
        generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
        owners = [model.corrupt_hints(found, [truth], share, [generator])[2][0] for generator in generators]
        assert set(torch.cat(owners).tolist()) == shown
