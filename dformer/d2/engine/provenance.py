"""What a run was: all that it takes to repeat it."""

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from dformer.utils import env
from dformer.utils.files import read_json, write_json

FILE = "runs.json"
# Of the environment, what changes how a run computes; nothing else is written down.
VARIABLES = ("CUDA_", "CUBLAS_", "NCCL_", "OMP_", "MKL_", "PYTORCH_", "TORCH_", "DETECTRON2_DATASETS", "PYTHONHASHSEED")


def write_record(cfg: CfgNode, start_iter: int) -> None:
    """Add this start of a run to OUTPUT_DIR/runs.json, a list, of which a resumed run has several entries."""
    path = Path(cfg.OUTPUT_DIR) / FILE
    earlier = read_json(path) if path.exists() else []
    write_json(path, [*earlier, record(cfg, start_iter)], indent=1)


def record(cfg: CfgNode, start_iter: int) -> dict[str, Any]:
    """Command, config, versions, seed and the state of dformer's git checkout."""
    return {
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
