"""Device and precision of a model: MODEL.DEVICE and SOLVER.AMP."""

import torch
from detectron2.config import CfgNode

from dformer.utils.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the type of mixed precision; None without it."""
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.DTYPE not in DTYPES:
        raise UserError(f'SOLVER.AMP.DTYPE is "{amp.DTYPE}", expected one of {", ".join(DTYPES)}')
    return DTYPES[amp.DTYPE] if amp.ENABLED else None


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Return the context of inference: the precision of training on a GPU, float32 on a CPU."""
    dtype = amp_dtype(cfg)
    return torch.autocast("cuda", dtype, enabled=dtype is not None and torch.device(cfg.MODEL.DEVICE).type == "cuda")


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
