"""Mixed precision, as SOLVER.AMP says."""

import torch
from detectron2.config import CfgNode

from dformer.errors import UserError

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
