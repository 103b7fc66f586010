"""Device and precision of a model: MODEL.DEVICE, SOLVER.AMP and TEST.AMP."""

import torch
from detectron2.config import CfgNode

from dformer.utils.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the type of mixed precision in training; None without it."""
    return _dtype(cfg) if cfg.SOLVER.AMP.ENABLED else None


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Return the context of inference: float32, or with TEST.AMP.ENABLED mixed precision."""
    device = torch.device(cfg.MODEL.DEVICE).type
    return torch.autocast(device, _dtype(cfg) if cfg.TEST.AMP.ENABLED else None, enabled=cfg.TEST.AMP.ENABLED)


def _dtype(cfg: CfgNode) -> torch.dtype:
    name = cfg.SOLVER.AMP.DTYPE
    if name not in DTYPES:
        raise UserError(f'SOLVER.AMP.DTYPE is "{name}", expected one of {", ".join(DTYPES)}')
    return DTYPES[name]


def resolve_device(device: str, is_explicit: bool, num_gpus: int) -> str:
    """Return `device`, or "cpu" if `device` is a GPU by default and there is none.

    Args:
        device: MODEL.DEVICE, "cpu" or "cuda".
        is_explicit: the user gave this device on the command line.
        num_gpus: `--num-gpus`; 0 asks for the CPU.

    Raises:
        UserError: there is no GPU, and the user asked for one.
    """
    if num_gpus == 0:
        return "cpu"
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return device
    if is_explicit or num_gpus > 1:
        option = f"--num-gpus {num_gpus}" if num_gpus > 1 else f"MODEL.DEVICE {device}"
        raise UserError(f"{option}: torch {torch.__version__} finds no GPU; omit it to run on the CPU")
    return "cpu"
