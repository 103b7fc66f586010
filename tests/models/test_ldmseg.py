"""Training step, sampling and inpainting of LDMSeg."""

import itertools
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from dformer.diffusion.schedule import alpha_bar_table, table_schedule
from dformer.models.ldmseg import Known, LatentDiffusion, LDMSegHead, draw_known
from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel
from tests.models.unet import published


def close(actual, expected, atol=1e-4, rtol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.golden
def test_golden_training_step(golden_dir):
    golden, head = published.load(golden_dir, "ldmseg_training_step.safetensors"), published.head(golden_dir)
    x0 = head.encode(2 * golden["bits"] - 1)
    close(x0, golden["latents"])
    mean, _, _ = published.image_vae(published.load(golden_dir, "ldmseg_image_vae.safetensors"))(
        golden["images"] * 2 - 1
    )
    close(mean.detach() * head.diffusion.scale, golden["image_latents"])
    close(head.loss_weight(golden["timesteps"]).float(), golden["loss_weights"])
    x_t = golden["noisy_latents"]
    with torch.no_grad():
        condition, output = head.predict(x_t, golden["timesteps"], golden["image_latents"], torch.zeros_like(x_t))
        close(output, golden["first_output"])
        close(condition, golden["condition"])
        close(head.predict(x_t, golden["timesteps"], golden["image_latents"], condition)[1], golden["prediction"])
    always = torch.ones(len(x0), dtype=torch.bool)
    predicted, error = head.training_step(x0, golden["image_latents"], golden["timesteps"], golden["noise"], always)
    close(predicted, golden["predicted_latents"])
    loss = (error * golden["loss_mask"][:, None]).mean()
    close(loss, golden["loss"])

    head.unet.time_embedding.requires_grad_(False)  # as published
    loss.backward()
    parameters = dict(head.unet.named_parameters())
    norm = torch.nn.utils.clip_grad_norm_(head.unet.parameters(), 1.0)
    close(norm, golden["gradient.norm"])
    for name in [key.removeprefix("gradient.") for key in golden if key.startswith("gradient.") and "norm" not in key]:
        close(parameters[name].grad * norm.clamp(min=1), golden[f"gradient.{name}"])
    norms = [
        p for m in head.unet.modules() if isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm) for p in m.parameters()
    ]
    others = [p for p in head.unet.parameters() if all(p is not n for n in norms)]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.05}]
    torch.optim.AdamW(groups, lr=1e-4).step()
    for name in [key.removeprefix("after_step.") for key in golden if key.startswith("after_step.")]:
        close(parameters[name].detach(), golden[f"after_step.{name}"], atol=1e-6)


class TanhDenoiser(nn.Module):
    """Stands in for the U-Net; keeps its inputs."""

    def __init__(self, alpha_bar, scale):
        super().__init__()
        self.alpha_bar, self.scale, self.inputs = alpha_bar, scale, []

    def forward(self, inputs, t):
        self.inputs.append(inputs)
        channels = inputs.shape[1] // 2  # x_t, and the condition
        x0 = 0.15 * torch.tanh(5 * inputs[:, :channels] + torch.cos(3 * self.alpha_bar(t)))
        return x0.clamp(-self.scale, self.scale)


@pytest.mark.golden
def test_golden_self_conditioning(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_self_condition.safetensors")
    x_t, gamma = golden["x_t"].movedim(-1, 1), golden["gamma"]  # (B, Z, h, w), (B, 1, 1, 1)
    unet = TanhDenoiser(lambda t: gamma[t], golden["config.b_scale"].item())
    diffusion = LatentDiffusion(lambda t: gamma[t], len(gamma), 1.0, "x0", max_snr=0.0, self_condition=0.5)
    head = LDMSegHead(unet=unet, mask_autoencoder=nn.Identity(), diffusion=diffusion)
    images = torch.arange(len(x_t))
    x0 = (x_t / gamma.sqrt()).requires_grad_()
    head.training_step(x0, x_t[:, :0], images, torch.zeros_like(x_t), images < golden["config.count"])
    close(unet.inputs[-1].movedim(1, -1), golden["output"])
    condition = unet.inputs[-1][:, x_t.shape[1] :]
    assert not torch.autograd.grad(condition.sum(), x0, allow_unused=True)[0].any()


@pytest.mark.golden
@torch.no_grad()
def test_golden_sampling(golden_dir):
    golden, head = published.load(golden_dir, "ldmseg_sampling.safetensors"), published.head(golden_dir)
    steps = sum(key.endswith(".t") for key in golden)
    taken = list(head.sample(golden["image_latents"], lambda: golden["noise"], steps))
    assert [step.t for step in taken] == [golden[f"step.{k}.t"] for k in range(steps)]
    channels = golden["noise"].shape[1]
    for k, step in enumerate(taken):
        close(step.x_t, golden[f"step.{k}.input"][:, :channels], rtol=1e-5)
    close(taken[-1].output, golden["latents"], rtol=1e-5)
    logits = F.interpolate(head.decode(taken[-1].output), golden["logits"].shape[-2:], mode="bilinear")
    close(logits[:1], golden["logits"])


@pytest.mark.golden
@torch.no_grad()
def test_golden_inpainting(golden_dir):
    golden, head = published.load(golden_dir, "ldmseg_inpainting.safetensors"), published.head(golden_dir)
    known = Known(head.encode(golden["masked_bits_signal"]), golden["latent_mask"])
    close(known.latents, golden["masked_latents"])
    taken = list(head.sample(golden["image_latents"], lambda: golden["noise"], len(golden["timesteps"]), known))
    assert [step.t for step in taken] == golden["timesteps"].tolist()
    for k, step in enumerate(taken):
        close(step.output, golden[f"condition_x0.step.{k}.x0"], rtol=1e-5)
    close(taken[-1].output, golden["condition_x0.latents"], rtol=1e-5)


class ClosedForm(torch.nn.Module):
    """eps = .6 z + .3 image - .2 condition + cos(t / 100), from which the published sampler's latents come."""

    def forward(self, inputs, t):
        z, image, condition = inputs.chunk(3, dim=1)
        return 0.6 * z + 0.3 * image - 0.2 * condition + torch.cos(t / 100)[:, None, None, None]


class Unconditioned(ClosedForm):
    def forward(self, inputs, t):
        z, image, _ = inputs.chunk(3, dim=1)
        return super().forward(torch.cat([z, image, torch.zeros_like(z)], dim=1), t)


def closed_form_head(unet, prediction="eps", scale=1.0):
    alpha_bar = table_schedule(alpha_bar_table("scaled_linear", 1000))
    autoencoder = MaskAutoencoderModel(num_bits=3, channels=(4, 4), hidden_channels=4, upscale_channels=4, groups=2)
    diffusion = LatentDiffusion(alpha_bar, 1000, scale, prediction, 2.0, 1.0)
    return LDMSegHead(unet=unet, mask_autoencoder=autoencoder, diffusion=diffusion)


@pytest.mark.golden
@pytest.mark.parametrize(("file", "unet"), [("ldmseg_ddim", ClosedForm), ("ldmseg_ddim_no_condition", Unconditioned)])
def test_golden_ddim(golden_dir, file, unet):
    golden, head = published.load(golden_dir, f"{file}.safetensors"), closed_form_head(unet())
    for steps in sorted(int(key.split(".")[0]) for key in golden if key.endswith(".timesteps")):
        for noise, expected in (
            ("noise", golden[f"{steps}.latents"]),
            ("noise_of_seed", golden[f"{steps}.all_latents"][-1]),
        ):
            drawn = golden[f"{steps}.{noise}"]
            taken = list(head.sample(golden["image_latents"], lambda drawn=drawn: drawn, steps))
            assert [step.t for step in taken] == golden[f"{steps}.timesteps"].tolist()
            close(taken[-1].output, expected, rtol=1e-5)


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 1), (1.0, 3)])
def test_noise_is_fresh_where_eta_asks_for_it(eta, draws):
    head, shape, seeds = closed_form_head(ClosedForm()), (2, 4, 6, 6), itertools.count()
    head.diffusion = head.diffusion._replace(eta=eta)
    deque(head.sample(draw(shape), lambda: draw(shape, next(seeds)), 3), maxlen=0)
    assert next(seeds) == draws


def test_what_is_known_stays():
    head, shape = closed_form_head(ClosedForm(), prediction="x0"), (2, 4, 6, 6)
    mask = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(3)) > 0.5
    known = Known(draw(shape, 1), mask)
    for step in head.sample(draw(shape, 2), lambda: draw(shape), 5, known):
        assert torch.equal(step.output.where(mask, torch.zeros(())), known.latents.where(mask, torch.zeros(())))
    *_, free = head.sample(draw(shape, 2), lambda: draw(shape), 5)
    *_, nothing = head.sample(draw(shape, 2), lambda: draw(shape), 5, Known(known.latents, torch.zeros_like(mask)))
    assert torch.equal(free.output, nothing.output)


def test_known_blocks_of_training():
    cells = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    x0, generators = draw((64, 4, 8, 8)), [torch.Generator().manual_seed(k) for k in range(64)]
    known = draw_known(x0, 0.5, generators)
    has_known = known.mask.flatten(1).any(1)
    assert 16 < has_known.sum() < 48 and not known.latents[~has_known].any()
    assert 0.2 < known.mask[has_known].float().mean() < 0.8
    assert torch.equal(known.paste(x0), x0)
    for x, latents, mask in zip(x0[has_known], known.latents[has_known], known.mask[has_known, 0], strict=True):
        chosen = (latents.flatten(1)[:, :, None] == x.flatten(1)[:, None]).all(0).nonzero()[:, 1]  # cell of each cell
        assert mask.flatten()[chosen].all()
        distance = torch.cdist(cells, cells)
        assert torch.equal(distance[range(64), chosen], distance[:, mask.flatten()].amin(1))
    one = draw_known(x0[5:6], 0.5, [torch.Generator().manual_seed(5)])
    assert torch.equal(one.latents[0], known.latents[5])  # whatever else is in the batch


class Seen(ClosedForm):
    """Keeps the conditions."""

    def __init__(self):
        super().__init__()
        self.conditions = []

    def forward(self, inputs, t):
        self.conditions.append(inputs.chunk(3, dim=1)[2])
        return super().forward(inputs, t)


@pytest.mark.parametrize(("self_condition", "known_share"), [(1.0, 0.0), (0.0, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_conditions_are_those_of_training(self_condition, known_share):
    head, shape = closed_form_head(Seen(), prediction="x0"), (2, 4, 6, 6)
    head.diffusion = head.diffusion._replace(self_condition=self_condition, known_share=known_share)
    known = Known(draw(shape, 1), draw((2, 1, 6, 6), 3) > 0)
    guessed = torch.where(known.mask, known.latents, known.latents / 2) if known_share else torch.zeros(shape)
    steps = list(head.sample(draw(shape, 2), lambda: draw(shape), 3, known))
    pasted = [known.paste(step.x0) for step in steps[:-1]]
    first, *others = head.unet.conditions
    assert torch.equal(first, guessed)
    for condition, before in zip(others, pasted, strict=True):
        assert torch.equal(condition, before if self_condition else guessed)


def test_x0_and_eps_weigh_the_same_error():
    """Predicted x_0 that is off by d is eps off by d * sqrt(SNR): both losses have the same value."""
    t = torch.tensor([0, 300, 999])
    eps, x0 = (closed_form_head(ClosedForm(), p).loss_weight(t) for p in ("eps", "x0"))
    alpha_bar_t = alpha_bar_table("scaled_linear", 1000)[t]
    torch.testing.assert_close(x0, eps * alpha_bar_t / (1 - alpha_bar_t))


def test_only_the_unet_learns():
    head = closed_form_head(torch.nn.Conv2d(1, 1, 1))
    assert [name for name, p in head.named_parameters() if p.requires_grad] == ["unet.weight", "unet.bias"]
