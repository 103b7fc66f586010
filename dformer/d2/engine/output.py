"""The output folder of a training: a new one does not mix with an earlier one, and replaces it only if asked to."""

import shutil
from pathlib import Path

from dformer.utils.errors import UserError
from dformer.utils.files import read_json

# All that a training writes there.
FILES = ["model_*.pth", "last_checkpoint", "config.yaml", "runs.json", "metrics.json", "events.out.tfevents.*"]
FILES += ["log.txt*", "results.json", "results.csv", "inference", "bad_step_*", "wandb", "wandb_run", "mlflow_run"]


def refuse_used(folder: str) -> None:
    """Check that a folder has no checkpoints or logged steps of a training, before a new one starts in it.

    Raises:
        UserError: it has; the message names that training and the ways on.
    """
    path = Path(folder)
    checkpoints = [file for file in path.glob("model_*.pth") if file.is_file()]
    found = [file.name for file in sorted(checkpoints, key=lambda file: file.stat().st_mtime_ns)]
    metrics = path / "metrics.json"
    if not found and metrics.exists() and metrics.stat().st_size:
        found = [metrics.name]
    if found:
        runs = path / "runs.json"
        started = f", started {read_json(runs)[-1]['started']}," if runs.exists() else ""
        raise UserError(
            f"OUTPUT_DIR {folder} has a training{started} with {found[-1]}: continue it with --resume, give another "
            "OUTPUT_DIR, or replace it with --overwrite"
        )


def remove_training(folder: str) -> None:
    """Remove all that a training has written to a folder."""
    for pattern in FILES:
        for path in Path(folder).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
