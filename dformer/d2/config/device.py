"""What a model runs on, MODEL.DEVICE, and in which precision, SOLVER.AMP."""

import torch
from detectron2.config import CfgNode

from dformer.utils.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type of mixed precision; None: all is float32.

    Raises:
        UserError: SOLVER.AMP.DTYPE is none of `DTYPES`.
    """
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.DTYPE not in DTYPES:
        raise UserError(f'SOLVER.AMP.DTYPE is "{amp.DTYPE}", but one of {", ".join(DTYPES)} was expected')
    return DTYPES[amp.DTYPE] if amp.ENABLED else None


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """The context of inference: on a GPU the precision of training, on a CPU float32."""
    dtype = amp_dtype(cfg)
    return torch.autocast("cuda", dtype, enabled=dtype is not None and torch.device(cfg.MODEL.DEVICE).type == "cuda")


def resolve_device(device: str, is_explicit: bool, num_gpus: int) -> str:
    """What to run on: `device`, or "cpu" where that is a GPU, there is none and nobody insists.

    Args:
        device: MODEL.DEVICE, "cpu" or "cuda".
        is_explicit: the user asked for this device on the command line.
        num_gpus: `--num-gpus`; 0 asks for the CPU.

    Raises:
        UserError: there is no GPU, and the user asked for one.
    """
    if num_gpus == 0:
        return "cpu"
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return device
    if is_explicit or num_gpus > 1:
        asked = f"--num-gpus {num_gpus}" if num_gpus > 1 else f"MODEL.DEVICE {device}"
        raise UserError(f"{asked}, but torch {torch.__version__} finds no GPU here; without it this runs on the CPU")
    return "cpu"
