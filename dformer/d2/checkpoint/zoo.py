"""From a checkpoint to the config that it goes with."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint
from dformer.d2.config import get_cfg, merge_config, merge_text
from dformer.d2.config.device import resolve_device
from dformer.d2.config.files import CONFIGS
from dformer.utils.errors import UserError
from dformer.weights.published.convert import our_system
from dformer.weights.published.downloads import is_name, published


def inference_config(
    weights: str | None, config_file: str | None, opts: list[str], steps: int | None = None, seed: int | None = None
) -> CfgNode:
    """Build the config of a trained model from a tool's arguments; without a GPU, for the CPU.

    Args:
        weights: checkpoint.
        config_file: config; by default that of the checkpoint.
        opts: overrides.
        steps, seed: DIFFUSION.SAMPLING_STEPS and SEED.
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
    """Return the config of the checkpoint at `path` (see `fetch_checkpoint`), with `path` in MODEL.WEIGHTS."""
    if is_name(path):  # of another model, too, the weights may fit
        cfg = get_cfg()
        merge_config(cfg, str(CONFIGS / published(path).config), [])
    else:
        cfg = config_of_checkpoint(fetch_checkpoint(path), path)
    cfg.MODEL.WEIGHTS = path
    return cfg


def config_of_checkpoint(checkpoint: Mapping[str, Any], path: str) -> CfgNode:
    """Return the config that a fetched checkpoint holds or, for a published model, that of the same model here.

    Raises:
        UserError: the file, `path`, holds none, or one of another version, and is not a published model, or may be
            several.
    """
    cfg = get_cfg()
    if isinstance(checkpoint.get("config"), str):
        merge_text(cfg, checkpoint["config"], f"the config in {path} is not one of this version of dformer")
        return cfg
    system = our_system(checkpoint["model"])
    names = [name for name in (system.configs(checkpoint["model"]) if system else ()) if (CONFIGS / name).is_file()]
    if not names:
        raise UserError(f"{path} holds no config, and configs/ has none for its weights; give a --config-file")
    if len(names) > 1:
        which = " or ".join(f"configs/{name}" for name in names)
        raise UserError(f"{path} holds no config, and its weights fit several models: give --config-file {which}")
    merge_config(cfg, str(CONFIGS / names[0]), [])
    return cfg
