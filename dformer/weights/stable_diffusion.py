"""Networks of Stable Diffusion 1.4 from local files or folders of diffusers (weights: CreativeML OpenRAIL-M)."""

import re
from pathlib import Path

from torch import Tensor

from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint
from dformer.weights.published.ldmseg import OLD_ATTENTION

FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
OLD_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


def read_network(path: str, part: str) -> dict[str, Tensor]:
    """Read a network with today's names of diffusers.

    Args:
        path: its file, `.safetensors` or as `torch.save` writes it; or the folder of the whole model.
        part: the network's folder there, "unet" or "vae".

    Raises:
        UserError: there is no such file, or it holds no weights.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / part / name for name in FILES if (file / part / name).is_file()]
        if not found:
            raise UserError(f"{file} has neither {part}/{FILES[0]} nor {part}/{FILES[1]}; give a folder of diffusers'")
        file = found[0]
    weights = read_checkpoint(file)["model"]
    return {
        f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}" if (old := OLD_NAME.fullmatch(name)) else name: tensor
        for name, tensor in weights.items()
    }


def image_encoder(path: str) -> dict[str, Tensor]:
    """Read the encoder of Stable Diffusion's autoencoder; see `read_network`."""
    weights = read_network(path, "vae")
    return {name: tensor for name, tensor in weights.items() if name.startswith(("encoder.", "quant_conv."))}


def unet_without_text(path: str) -> dict[str, Tensor]:
    """Read the U-Net without what attends to the text; see `read_network`."""
    weights = read_network(path, "unet")
    return {name: x for name, x in weights.items() if not re.search(r"transformer_blocks\.\d+\.(attn2|norm2)\.", name)}
