"""The networks of the reference tensors of LDMSeg, with their weights."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from dformer.diffusion.schedule import alpha_bar_table, table_schedule
from dformer.models.ldmseg import LatentDiffusion, LDMSegHead
from dformer.models.unet.image_vae import ImageVAE
from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel
from dformer.models.unet.unet2d import UNet2DConditionModel

Tensors = dict[str, Tensor]


def load(folder: Path, name: str) -> Tensors:
    return {key: x.float() if x.is_floating_point() else x for key, x in load_file(folder / name).items()}


def weights(golden: Tensors) -> Tensors:
    """The state dict; the published code saves the first convolution twice."""
    prefix = "state_dict."
    found = {key.removeprefix(prefix): x for key, x in golden.items() if key.startswith(prefix)}
    return {key: x for key, x in found.items() if not key.startswith(("new_conv.", "post_quant_conv."))}


def config(golden: Tensors, key: str) -> int:
    return int(golden[f"config.{key}"])


def unet(golden: Tensors) -> UNet2DConditionModel:
    state = weights(golden)
    state.pop("object_queries.weight", None)
    channels = golden["config.block_out_channels"].tolist()
    names = [f"down_blocks.{i}.attentions.0.transformer_blocks.0" for i in range(len(channels))]
    context = state.get(f"{names[0]}.attn2.to_k.weight")
    model = UNet2DConditionModel(
        in_channels=state["conv_in.weight"].shape[1],
        out_channels=len(state["conv_out.weight"]),
        channels=channels,
        attention=[f"{name}.norm1.weight" in state for name in names],
        layers=config(golden, "layers_per_block"),
        heads=config(golden, "attention_head_dim"),
        groups=config(golden, "norm_num_groups"),
        context_channels=None if context is None else context.shape[1],
    )
    model.load_state_dict(state)
    return model.eval()


def image_vae(golden: Tensors) -> ImageVAE:
    model = ImageVAE(
        channels=golden["config.block_out_channels"].tolist(),
        layers=config(golden, "layers_per_block"),
        latent_channels=config(golden, "latent_channels"),
        groups=config(golden, "norm_num_groups"),
    )
    model.load_state_dict(weights(golden))
    return model.eval()


def mask_autoencoder(golden: Tensors) -> MaskAutoencoderModel:
    model = MaskAutoencoderModel(
        num_bits=config(golden, "num_bits"),
        channels=golden["config.block_out_channels"].tolist(),
        latent_channels=config(golden, "latent_channels"),
        hidden_channels=config(golden, "int_channels"),
        upscale_channels=config(golden, "upscale_channels"),
        upscalers=config(golden, "num_upscalers"),
        groups=config(golden, "norm_num_groups"),
    )
    model.load_state_dict(weights(golden))
    return model.eval()


def head(folder: Path) -> LDMSegHead:
    """The published settings: eps, min-SNR 2, self-conditioning at each step."""
    golden = load(folder, "ldmseg_autoencoder.safetensors")
    alpha_bar = table_schedule(alpha_bar_table("scaled_linear", 1000))
    diffusion = LatentDiffusion(alpha_bar, 1000, golden["scaling_factor"].item(), "eps", 2.0, 1.0)
    denoiser = unet(load(folder, "ldmseg_unet.safetensors"))
    return LDMSegHead(unet=denoiser, mask_autoencoder=mask_autoencoder(golden), diffusion=diffusion)
