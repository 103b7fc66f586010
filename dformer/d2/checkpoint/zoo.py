"""From a checkpoint to the config that it goes with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint
from dformer.d2.config import get_cfg, merge_config, merge_text
from dformer.d2.config.device import resolve_device
from dformer.utils.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"

# Number of classes -> folder and schedule. With 150 classes, ADE20K's semantic and panoptic models look the same.
DATA_SETS = {
    133: ("coco/panoptic", "50ep"),
    80: ("coco/instance", "50ep"),
    150: ("ade20k/semantic", "160k"),
    100: ("ade20k/instance", "160k"),
}
# Channels of the first stage and blocks of the third -> backbone; weights do not tell with what it was pretrained.
SWINS = {(96, 6): "swin_tiny", (96, 18): "swin_small", (128, 18): "swin_base", (192, 18): "swin_large_22k"}
RESNETS = {6: "r50", 23: "r101"}


def inference_config(
    weights: str | None, config_file: str | None, opts: list[str], steps: int | None = None, seed: int | None = None
) -> CfgNode:
    """The config that the tools which run a trained model have from their arguments; on the CPU where there is no GPU.

    Args:
        weights: checkpoint.
        config_file: config; by default the one of the checkpoint.
        opts: overrides.
        steps, seed: DIFFUSION.SAMPLING_STEPS and SEED.

    Raises:
        UserError: there is neither a checkpoint nor a config, or they cannot be used.
    """
    if not config_file and not weights:
        raise UserError("give a checkpoint with --weights, or a config with --config-file")
    cfg = config_of(weights) if weights and not config_file else get_cfg()
    merge_config(cfg, config_file, opts)
    if weights:
        cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE, "MODEL.DEVICE" in opts, num_gpus=1)
    if steps is not None:
        cfg.DIFFUSION.SAMPLING_STEPS = steps
    if seed is not None:
        cfg.DIFFUSION.SEED = seed
    return cfg


def config_of(path: str) -> CfgNode:
    """The config of the checkpoint at `path` (see `fetch_checkpoint`), with `path` in MODEL.WEIGHTS."""
    cfg = config_of_checkpoint(fetch_checkpoint(path), path)
    cfg.MODEL.WEIGHTS = path
    return cfg


def config_of_checkpoint(checkpoint: Mapping[str, Any], path: str) -> CfgNode:
    """The config that a checkpoint carries or, for a published model, that of the same model here.

    Args:
        checkpoint: as `fetch_checkpoint` returns it.
        path: where it is from, for messages.

    Raises:
        UserError: it carries no config and is not of a published model, or its config is of another version.
    """
    cfg = get_cfg()
    if isinstance(checkpoint.get("config"), str):
        merge_text(cfg, checkpoint["config"], f"the config in {path} is not one of this version of dformer")
    else:
        name = published_config(checkpoint["model"])
        if name is None or not (CONFIGS / name).is_file():
            raise UserError(
                f"{path} carries no config, and is not of a model that configs/ has; give its --config-file"
            )
        merge_config(cfg, str(CONFIGS / name), [])
    return cfg


def published_config(weights: Mapping[str, Tensor]) -> str | None:
    """Config, in the folder configs/, of the published model that has these weights (under our names), or None."""
    if "head.mask_decoder.class_embed.bias" not in weights:
        return None
    folder, schedule = DATA_SETS.get(len(weights["head.mask_decoder.class_embed.bias"]) - 1, (None, None))
    backbone = _backbone(weights)
    if folder is None or backbone is None:
        return None
    if backbone == "swin_large_22k" and folder.startswith("coco"):
        schedule = "100ep"
    system = "mask2former" if "head.query_feat" in weights else "dformer"
    subfolder = "swin/" if backbone.startswith("swin") else ""
    return f"{folder}/{subfolder}{system}_{backbone}_{schedule}.yaml"


def _backbone(weights: Mapping[str, Tensor]) -> str | None:
    if "backbone.body.patch_embed.proj.weight" in weights:
        width = len(weights["backbone.body.patch_embed.proj.weight"])
        return SWINS.get((width, _blocks(weights, "backbone.body.layers_2.blocks.")))
    return RESNETS.get(_blocks(weights, "backbone.res4."))


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
