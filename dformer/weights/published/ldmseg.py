"""Files of the published LDMSeg (`ae.pt`, `ldmseg.pt`) and of Stable Diffusion 1.4, which it starts from.

The published weights are for non-commercial use (CC BY-NC 4.0), Stable Diffusion's under CreativeML OpenRAIL-M.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dformer.weights.names import Table
from dformer.weights.published.system import PublishedSystem

# Networks that a file holds side by side, each a state dict of its own.
PARTS = ("unet", "vae_semseg", "vae_image", "vae")

# diffusers before 0.17 -> today's names of the attention in Stable Diffusion's autoencoder.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = "encoder.mid_block.attentions.#"

NAMES: Table = [
    ("unet", "head.unet"),
    ("vae_semseg", "head.mask_autoencoder"),
    *((f"vae_image.{_ATTENTION}.{new}", f"vae_image.{_ATTENTION}.{new}") for new in OLD_ATTENTION.values()),
    *((f"vae_image.{_ATTENTION}.{old}", f"vae_image.{_ATTENTION}.{new}") for old, new in OLD_ATTENTION.items()),
    ("vae_image", "vae_image"),
]
DROPPED = [
    (r"unet\.new_conv\.(weight|bias)", "the same tensor as conv_in's"),
    (r"vae_image\.(post_quant_conv|decoder)\..*", "of the decoder of images"),
]


def joined(content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return one state dict, `<part>.<name>`, of a published file with a state dict a network; None for other files."""
    parts = {part: content[part] for part in PARTS if isinstance(content.get(part), dict)}
    if not parts:
        return None
    return {
        f"{part}.{str(name).removeprefix('module.')}": x
        for part, weights in parts.items()
        for name, x in weights.items()
    }


def separated(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of the networks in `<part>.<name>`, as published files have them; undoes `joined`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def first_convolution(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a published U-Net saves a second time."""
    return {f"unet.new_conv.{kind}": published[f"unet.conv_in.{kind}"] for kind in ("weight", "bias")}


def find_configs(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the config of the published model."""
    return ["coco/ldmseg/ldmseg_sd_200k.yaml"]


LDMSEG = PublishedSystem(
    name="LDMSeg",
    theirs="vae_semseg.",
    ours="head.mask_autoencoder.",
    names=NAMES,
    dropped=DROPPED,
    buffers=first_convolution,
    configs=find_configs,
    settings={"DIFFUSION.SCHEDULE": "scaled_linear", "DIFFUSION.TIMESTEPS": 1000},
    content=separated,
)
MASK_AUTOENCODER = PublishedSystem(
    name="MaskAutoencoder",
    theirs="vae.encoder.",
    ours="mask_autoencoder.",
    names=[("vae", "mask_autoencoder")],
    dropped=[],
    buffers=lambda published: {},
    configs=lambda weights: ["coco/ldmseg/mask_autoencoder_60k.yaml"],
    settings={},
    content=separated,
)
