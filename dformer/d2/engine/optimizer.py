"""Optimizer, gradient clipping and learning-rate schedule of a cfg."""

import math
from collections import defaultdict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import Tensor, nn

from dformer.utils.errors import UserError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RUNNING_NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # with running statistics
NORMS = (*RUNNING_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
# Embeddings that are bare parameters, by the last part of their name: those of timm's backbones and of our models.
EMBEDDINGS = {"relative_position_bias_table", "absolute_pos_embed", "pos_embed", "cls_token", "reg_token"}
EMBEDDINGS |= {"level_embed", "query_embed", "query_feat"}


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Group the trainable parameters of `model` by learning rate and weight decay.

    The backbone learns at BASE_LR * BACKBONE_MULTIPLIER, and a layer of a plain vision transformer at LAYER_DECAY times
    the rate of the layer after it. Norms decay by WEIGHT_DECAY_NORM; embeddings (queries, levels,
    absolute and relative positions) by WEIGHT_DECAY_EMBED.

    Returns:
        Groups for a `torch.optim.Optimizer`, one per pair of learning rate and weight decay. "params" are pairs (name,
        parameter); "initial_lr" is what a schedule multiplies.
    """
    solver = cfg.SOLVER
    groups = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not parameter.requires_grad:
                continue
            lr = solver.BASE_LR * (_backbone_factor(cfg, model, name) if name.startswith("backbone.") else 1.0)
            decay = solver.WEIGHT_DECAY
            if isinstance(module, NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding) or name.rpartition(".")[2] in EMBEDDINGS:
                decay = solver.WEIGHT_DECAY_EMBED
            groups[lr, decay].append((name, parameter))
    return [
        {"params": params, "lr": lr, "initial_lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()
    ]


def _backbone_factor(cfg: CfgNode, model: nn.Module, name: str) -> float:
    factor = cfg.SOLVER.BACKBONE_MULTIPLIER
    if cfg.SOLVER.LAYER_DECAY == 1:
        return factor
    backbone: Any = model.backbone
    if not hasattr(backbone, "layers_above"):
        raise UserError("SOLVER.LAYER_DECAY must be 1 unless MODEL.BACKBONE.NAME is build_timm_vit_backbone")
    return factor * cfg.SOLVER.LAYER_DECAY ** backbone.layers_above(name.removeprefix("backbone."))


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer SOLVER.OPTIMIZER, "ADAMW" or "SGD", over `parameter_groups`."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE != "full_model":
        raise UserError(f'SOLVER.CLIP_GRADIENTS.CLIP_TYPE is "{clip.CLIP_TYPE}", expected "full_model"')
    groups = parameter_groups(cfg, model)
    # One fused kernel, on CPUs too, instead of a dozen operations per parameter.
    match cfg.SOLVER.OPTIMIZER:
        case "ADAMW":
            return torch.optim.AdamW(groups, fused=True)
        case "SGD":
            return torch.optim.SGD(groups, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV, fused=True)
        case name:
            raise UserError(f'SOLVER.OPTIMIZER is "{name}", expected "ADAMW" or "SGD"')


def clip_gradients(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Tensor:
    """Scale all gradients so that their joint norm is at most CLIP_VALUE, if enabled; return the norm before, a scalar.

    If the norm is not finite, finite gradients become 0 and the others stay, so that they can be reported.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], clip.NORM_TYPE)
    if clip.ENABLED:
        nn.utils.clip_grads_with_norm_(parameters, clip.CLIP_VALUE, norm.nan_to_num(nan=math.inf, posinf=math.inf))
    return norm


class PolynomialDecay(ParamScheduler):
    """Return a factor that falls from 1 to `end` as (1 - x)^power."""

    def __init__(self, power: float, end: float) -> None:
        self.power, self.end = power, end

    def __call__(self, where: float) -> float:
        """Return the value at `where` in [0, 1]."""
        return self.end + (1 - self.end) * (1 - where) ** self.power


def build_schedule(cfg: CfgNode) -> ParamScheduler:
    """Return the factor on all learning rates as a function of iteration / MAX_ITER in [0, 1].

    "WarmupMultiStepLR": times GAMMA at each of STEPS. "WarmupCosineLR": half a cosine. "WarmupPolyLR":
    (1 - iteration / MAX_ITER) ^ POLY_POWER. The latter two fall from BASE_LR to BASE_LR_END. Before, during
    WARMUP_ITERS, it rises from WARMUP_FACTOR to the schedule's value (linearly for WARMUP_METHOD "linear").
    """
    solver = cfg.SOLVER
    if solver.BASE_LR <= 0:
        raise UserError(f"SOLVER.BASE_LR is {solver.BASE_LR}, expected a number above 0")
    name, end = solver.LR_SCHEDULER_NAME, solver.BASE_LR_END / solver.BASE_LR
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
        factors = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule: ParamScheduler = MultiStepParamScheduler(factors, num_updates=solver.MAX_ITER, milestones=steps)
    elif name == "WarmupCosineLR":
        schedule = CosineParamScheduler(1.0, end)
    elif name == "WarmupPolyLR":
        schedule = PolynomialDecay(solver.POLY_POWER, end)
    else:
        raise UserError(
            f'SOLVER.LR_SCHEDULER_NAME is "{name}", expected WarmupMultiStepLR, WarmupCosineLR or WarmupPolyLR'
        )
    warmup = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if warmup == 0.0:
        return schedule
    return WarmupParamScheduler(schedule, solver.WARMUP_FACTOR, warmup, solver.WARMUP_METHOD)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rate of each group to `factor` times its initial one; return the highest."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
    return max(group["lr"] for group in optimizer.param_groups)
