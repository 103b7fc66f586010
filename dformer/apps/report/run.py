"""The files of a run: predictions, config, command and curves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from dformer.d2.config import get_cfg, merge_config, merge_text
from dformer.d2.data import register_custom
from dformer.utils.errors import UserError

# Plots over the iterations: title -> ends of the names in metrics.json.
CURVES = {
    "loss": ("total_loss",),
    "terms of the loss, last layer": ("loss_ce", "loss_mask", "loss_dice"),
    "validation": ("panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"),
    "learning rate": ("lr",),
}
SAVED = ("panoptic.json", "coco_instances_results.json", "semantic")  # one of them is in a folder of predictions


@dataclass(frozen=True)
class Run:
    """Hold saved predictions and, from the OUTPUT_DIR of a training, its curves."""

    name: str  # of the folder
    predictions: Mapping[str, Path]  # data set -> folder of the predictions for it
    cfg: CfgNode  # that they were made with
    command: str  # that made them; empty if it is not known
    curves: Mapping[str, Mapping[int, float]]  # name in metrics.json -> iteration -> value; empty without a training


def read_run(folder: str | Path, config_file: str | None = None, opts: list[str] | None = None) -> Run:
    """Find predictions, config and curves; return them.

    Args:
        folder: OUTPUT_DIR of a training or an evaluation, its `inference`, or the predictions for one data set there.
        config_file: instead of the config.yaml beside the predictions, which those of other programs lack.
        opts: config overrides, KEY VALUE.

    Raises:
        UserError: there are no predictions, no config, or one that cannot be used.
    """
    folder = Path(folder)
    root = folder / "inference" if (folder / "inference").is_dir() else folder
    found = [path for path in (root, *sorted(root.glob("[!.]*"))) if any((path / name).exists() for name in SAVED)]
    if not found:
        raise UserError(
            f"{folder} is no folder with predictions; give OUTPUT_DIR of a run, where `dformer eval` "
            "saves them, or a folder of predictions (docs/evaluation.md shows the tree)"
        )
    saved = found[0] / "config.yaml"
    if not config_file and not saved.is_file():
        raise UserError(f"{saved} does not exist; name the config of these predictions with --config-file")
    cfg = get_cfg()
    if not config_file:
        merge_text(cfg, saved.read_text(), f"config file {saved}")
    merge_config(cfg, config_file, opts or [])
    register_custom(cfg)
    # The comment that the config begins with, see `dformer.d2.config.defaults.config_text`.
    first = saved.read_text().split("\n", 1)[0] if saved.is_file() else ""
    output = root.parent if root.name == "inference" else folder
    return Run(
        name=output.resolve().name,
        predictions={path.name: path for path in found},
        cfg=cfg,
        command=first.removeprefix("# ") if first.startswith("# ") else "",
        curves=_read_curves(output / "metrics.json"),
    )


def _read_curves(file: Path) -> dict[str, dict[int, float]]:
    """Return the curves; of a resumed run, the last value of an iteration counts. The last line may be cut off."""
    ends = tuple(end for ends in CURVES.values() for end in ends)
    curves: dict[str, dict[int, float]] = {}
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        for name, value in values.items():
            if name.endswith(ends):
                curves.setdefault(name, {})[values["iteration"]] = value
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}
