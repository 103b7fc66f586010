"""The U-Net and both autoencoders give what the published ones give, and diffusers'."""

import pytest
import torch
from torch import nn

from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel, kl_divergence
from dformer.models.unet.unet2d import UNet2DConditionModel, widen_conv_in
from tests.models.unet import published

STABLE_DIFFUSION = {"channels": (320, 640, 1280, 1280), "attention": (True, True, True, False), "layers": 2, "heads": 8}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.golden
@torch.no_grad()
def test_golden_unet(golden_dir):
    golden = published.load(golden_dir, "ldmseg_unet.safetensors")
    model = published.unet(golden)
    close(model.time_embedding(golden["timesteps"]), golden["time_embedding"])
    close(model.conv_in(golden["inputs"]), golden["conv_in"])
    close(model(golden["inputs"], golden["timesteps"]), golden["output"])


@pytest.mark.golden
@torch.no_grad()
def test_golden_unet_with_a_context(golden_dir):
    golden = published.load(golden_dir, "ldmseg_unet_cross.safetensors")
    model, inputs = published.unet(golden), (golden["inputs"], golden["timesteps"])
    close(model(*inputs, golden["encoder_hidden_states"]), golden["output"])
    queries = golden["state_dict.object_queries.weight"]
    close(model(*inputs, queries.expand(len(inputs[0]), -1, -1)), golden["output_learned"])


@pytest.mark.golden
@torch.no_grad()
def test_golden_image_encoder(golden_dir):
    golden = published.load(golden_dir, "ldmseg_image_vae.safetensors")
    mean, logvar, _ = published.image_vae(golden)(2 * golden["images"] - 1)
    close(mean, golden["mean"])
    close(logvar, golden["logvar"])


@pytest.mark.golden
@torch.no_grad()
def test_golden_mask_autoencoder(golden_dir):
    golden = published.load(golden_dir, "ldmseg_autoencoder.safetensors")
    model = published.mask_autoencoder(golden)
    mean, logvar = model.encode(2 * golden["bits"] - 1)
    close(mean, golden["mean"])
    close(logvar, golden["logvar"])
    close(mean + (logvar / 2).exp() * golden["noise"], golden["sample"])
    close(kl_divergence(mean, logvar), golden["kl"])
    close(mean * golden["scaling_factor"], golden["scaled_latents"])
    close(model.decode(mean), golden["decoded"])
    close(model.decode_at(mean, golden["bits"].shape[-2:])[:1], golden["decoded_interpolated"])


@pytest.mark.golden
@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("published", ("copy", "zero", "zero")),
        ("no_condition", ("copy", "zero")),
        ("defaults", ("copy", "copy")),
        ("mean", ("mean", "mean", "zero")),
    ],
)
def test_golden_first_convolution(golden_dir, mode, parts):
    golden = published.load(golden_dir, "ldmseg_conv_in.safetensors")
    widened = widen_conv_in(golden[f"{mode}.before.weight"], parts)
    torch.testing.assert_close(widened, golden[f"{mode}.after.weight"], rtol=0, atol=1e-6)
    assert torch.equal(golden[f"{mode}.before.bias"], golden[f"{mode}.after.bias"])


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_published_numbers_of_parameters():
    with torch.device("meta"):
        assert count(MaskAutoencoderModel(num_bits=7)) == 2_023_208
        unet = UNet2DConditionModel(in_channels=12, out_channels=4, **STABLE_DIFFUSION)
        assert count(unet) == 815_556_484
        assert count(unet) - count(unet.time_embedding) == 813_505_924  # trained
        text = UNet2DConditionModel(in_channels=4, out_channels=4, context_channels=768, **STABLE_DIFFUSION)
        assert count(text) == 859_520_964  # of Stable Diffusion 1.4


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 1)])
def test_maps_of_any_size(size):
    model = UNet2DConditionModel(
        in_channels=3, out_channels=2, channels=(8, 16, 16), attention=(False, True, True), layers=1, heads=2, groups=4
    )
    assert model(torch.zeros(2, 3, *size), torch.tensor([0, 5])).shape == (2, 2, *size)


@pytest.mark.parametrize("context", [None, 10])
@torch.no_grad()
def test_diffusers_unet_is_the_same(context):
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    theirs = diffusers.UNet2DConditionModel(
        in_channels=12,
        out_channels=4,
        block_out_channels=(16, 24, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=context or 10,
    ).eval()
    if context is None:
        for module in theirs.modules():
            if hasattr(module, "attn2"):
                module.attn2 = module.norm2 = None
    ours = UNet2DConditionModel(
        in_channels=12,
        out_channels=4,
        channels=(16, 24, 32),
        attention=(True, True, False),
        layers=2,
        heads=2,
        groups=8,
        context_channels=context,
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 12, 16, 12, generator=generator), torch.tensor([999, 17])
    tokens = torch.randn(2, 5, 10, generator=generator)
    expected = theirs(x, t, tokens).sample
    close(ours(x, t, tokens if context else None), expected)


@torch.no_grad()
def test_diffusers_image_encoder_is_the_same():
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    from dformer.models.unet.image_vae import ImageVAE

    theirs = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        norm_num_groups=8,
    ).eval()
    ours = ImageVAE(channels=(8, 16, 24), layers=2, groups=8).eval()
    names = ours.state_dict().keys()
    ours.load_state_dict({name: x for name, x in theirs.state_dict().items() if name in names})
    images = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    close(ours(images)[0], theirs.encode(images).latent_dist.mode())
