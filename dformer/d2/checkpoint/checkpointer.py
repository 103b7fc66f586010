"""Checkpoints of a cfg's model: written with the cfg, read from files, URLs, timm and the package."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from dformer.utils import groups
from dformer.utils.env import git_state, versions
from dformer.utils.errors import UserError, did_you_mean
from dformer.utils.files import atomic_write
from dformer.weights.checkpoint import read_checkpoint, write_checkpoint
from dformer.weights.loading import load, table
from dformer.weights.published.downloads import fetch_published, is_name

logger = logging.getLogger(__name__)

TIMM = "timm://"
SHIPPED = "dformer://"  # weights that come with the package
ASSETS = Path(__file__).resolve().parents[2] / "assets"
BEST = "model_best"


class Checkpointer(DetectionCheckpointer):
    """Implement Detectron2's checkpointer with `dformer.weights.checkpoint` and `dformer.weights.loading`."""

    def __init__(self, model: nn.Module, cfg: CfgNode, **checkpointables: Any) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, **checkpointables)
        self._cfg = cfg

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<OUTPUT_DIR>/<name>.pth`: the model, the checkpointables, `kwargs`, "config" and "origin"."""
        if not self.save_to_disk:
            return
        states = {key: each.state_dict() for key, each in ({"model": self.model} | self.checkpointables).items()}
        content = {**states, "config": self._cfg.dump(), "origin": _origin(), **kwargs}
        write_checkpoint(os.path.join(self.save_dir, f"{name}.pth"), content)
        if name != BEST:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name into `<OUTPUT_DIR>/last_checkpoint`, whole or not at all."""
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as partial:
            partial.write_text(last_filename_basename)

    def numbered(self) -> list[Path]:
        """List the checkpoints model_<iteration>.pth, the newest last."""
        return sorted(Path(self.save_dir).glob("model_[0-9]*.pth"), key=lambda path: path.stat().st_mtime_ns)

    def newest(self) -> str:
        """Find the newest readable checkpoint in OUTPUT_DIR, for all processes; return "" if there is none at all.

        That is the one that `last_checkpoint` names, else the next by age. Unreadable ones are logged with the reason.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        return groups.all_gather(self._find_newest() if comm.is_main_process() else "")[0]

    def _find_newest(self) -> str:
        final = Path(self.save_dir).glob("model_final.pth")
        by_age = sorted([*self.numbered(), *final], key=lambda path: path.stat().st_mtime_ns, reverse=True)
        candidates = [path for path in dict.fromkeys([Path(self.get_checkpoint_file()), *by_age]) if path.is_file()]
        for path in candidates:
            try:
                read_checkpoint(path)
                return str(path)
            except UserError as error:
                logger.error(f"{error}. The checkpoint before it is used")
        if candidates:
            raise UserError(f"no checkpoint in {self.save_dir} can be read: {', '.join(x.name for x in candidates)}")
        return ""

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the checkpoint at `path` (see `fetch_checkpoint`), if `path` is not empty, log a summary, and return it.

        Args:
            checkpointables: what else to load; None: all, to resume a run, so that nothing may be missing.
        """
        if not path:
            logger.info("MODEL.WEIGHTS is empty: nothing is loaded")
            return {}
        checkpoint = fetch_checkpoint(path)
        is_resumed = checkpointables is None
        load_weights(self.model, checkpoint, path, self._cfg.MODEL.WEIGHTS_STRICT or is_resumed, trained=is_resumed)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.checkpointables[key].load_state_dict(checkpoint[key])
        return checkpoint


@cache
def _origin() -> dict[str, Any]:
    git = git_state()
    return {"versions": versions(), "commit": git.get("commit"), "changed": git.get("status")}


def load_weights(
    model: nn.Module, checkpoint: dict[str, Any], path: str, strict: bool = True, trained: bool = True
) -> None:
    """Load a checkpoint by `dformer.weights.loading.load` and log a summary."""
    fit = load(model, checkpoint, path, strict, trained)
    logger.info(f"Weights of {path}:\n{table(fit)}")


def fetch_checkpoint(path: str, averaged: bool = False) -> dict[str, Any]:
    """Fetch a checkpoint and read it by `dformer.weights.checkpoint.read_checkpoint`.

    Args:
        path: a local file, a URL of Detectron2's path manager (`detectron2://...`, `https://...`), `timm://<name>`, a
            pretrained model of timm's, `dformer://<name>`, a model that comes with the package, or the name of a
            published checkpoint, "mask2former/coco/panoptic/r50" (all: `dformer.weights.published.downloads`).
        averaged: see `read_checkpoint`.

    Raises:
        UserError: it cannot be fetched, or is not a checkpoint.
    """
    if path.startswith(TIMM):
        return {"model": _timm_weights(path)}
    if path.startswith(SHIPPED):
        if path not in (known := shipped_models()):
            hint = did_you_mean(path, known)
            raise UserError(f"{path} does not come with dformer{hint} (available: {', '.join(known)})")
        return read_checkpoint(ASSETS / f"{path.removeprefix(SHIPPED)}.safetensors", averaged)
    try:
        local_path = fetch_published(path) if is_name(path) else PathManager.get_local_path(path)
    except OSError as error:
        raise UserError(f"weights {path} cannot be fetched: {error}") from error
    checkpoint = read_checkpoint(local_path, averaged)
    if checkpoint.get("__author__") == "Caffe2":
        checkpoint["model"] = _from_caffe2(checkpoint["model"])
    return checkpoint


def shipped_models() -> list[str]:
    """List `dformer://<name>` of each model that comes with the package."""
    return sorted(SHIPPED + file.stem for file in ASSETS.glob("*.safetensors"))


def _timm_weights(path: str) -> dict[str, Tensor]:
    name = path.removeprefix(TIMM)
    if not timm.is_model_pretrained(name):
        known = timm.list_pretrained()
        raise UserError(f'MODEL.WEIGHTS {path}: timm has no pretrained model "{name}"{did_you_mean(name, known)}')
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except OSError as error:
        raise UserError(f"weights {path} cannot be fetched: {error}") from error


def _from_caffe2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detectron's names -> Detectron2's. Its batch norms are scale and shift only."""
    renamed, _ = convert_c2_detectron_names(weights)
    norms = [name.removesuffix("weight") for name in renamed if name.endswith(".norm.weight")]
    means = {f"{norm}running_mean": torch.zeros_like(renamed[f"{norm}bias"]) for norm in norms}
    variances = {f"{norm}running_var": torch.ones_like(renamed[f"{norm}bias"]) - 1e-5 for norm in norms}  # its epsilon
    return renamed | means | variances
