"""Provenance of a run: everything that is needed to repeat it."""

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from dformer.utils import env
from dformer.utils.files import read_json, write_json

# Only environment variables that change how a run computes are written.
VARIABLES = ("CUDA_", "CUBLAS_", "NCCL_", "OMP_", "MKL_", "PYTORCH_", "TORCH_", "DETECTRON2_DATASETS", "PYTHONHASHSEED")


def write_provenance(cfg: CfgNode, start_iter: int) -> None:
    """Append this start of a run to the list in OUTPUT_DIR/runs.json."""
    path = Path(cfg.OUTPUT_DIR) / "runs.json"
    entry = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "start_iter": start_iter,
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "processes": comm.get_world_size(),
        "device": torch.cuda.get_device_name() if cfg.MODEL.DEVICE.startswith("cuda") else env.cpu_model(),
        "seed": cfg.SEED,
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **env.versions()},
        "platform": platform.platform(),
        "git": env.git_state(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        "config": cfg.dump(),
    }
    write_json(path, [*(read_json(path) if path.exists() else []), entry], indent=1)
