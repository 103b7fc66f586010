"""Training steps with numbers that are not finite: find where these arise, and save such a step for a replay."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from dformer.d2.checkpoint.checkpointer import load_weights
from dformer.d2.checkpoint.zoo import config_of_checkpoint
from dformer.d2.config.device import amp_dtype
from dformer.d2.engine.optimizer import RUNNING_NORMS
from dformer.utils import groups, rng
from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint, write_checkpoint

Item = Mapping[str, Any]  # an image, as the model takes it

MAX_NAMES = 8  # in a message


def nonfinite_gradients(model: nn.Module) -> str:
    """List the parameters whose gradient is not finite, separated by commas; return "" if there are none."""
    return _nonfinite({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def trace(cfg: CfgNode, model: nn.Module, batch: Sequence[Item], rank: int) -> list[str]:
    """Run the last step again, as it was and image by image, and return a sentence on where each stops being finite.

    With SOLVER.ACCUMULATE it runs image by image only. A sentence names an image's own tensors, the first module's
    output, the losses and gradients that are not finite. Each run starts from the random state of the step in the
    process of this rank. The model, its gradients and global random states stay the same, except running statistics of
    norms. In a group, all processes have to call this, with batches of the same size, after the forward of the model in
    training mode.
    """
    iteration: Any = model.iteration
    dtype, device = amp_dtype(cfg), torch.device(cfg.MODEL.DEVICE)
    sentences = []
    whole = [batch] if cfg.SOLVER.ACCUMULATE == 1 else []  # otherwise it is too large for a forward
    for items in (*whole, *([item] for item in batch)):
        model.iteration = iteration - 1  # seeds what the model draws for an image
        with (
            rng.seeded("trace"),  # restores what `seed_all` seeds
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
        ):
            rng.seed_all("step", cfg.SEED, rank, iteration - 1)  # as the trainer does, for dropout and drop path
            found = "; ".join(_trace(model, items))
        if items is batch:
            sentences.append(f"the batch again: {found or 'finite'}")
        else:
            name = f"image {items[0].get('image_id', 'without id')}"
            file = f" ({items[0]['file_name']})" if "file_name" in items[0] else ""
            sentences.append(f"{name}{file}: {found or 'finite on its own'}")
    model.iteration = iteration
    return sentences


def _trace(model: nn.Module, items: Sequence[Item]) -> list[str]:
    found: list[str] = []
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(partial(_check_output, found, name)) for name, module in leaves]
    losses = model(items)
    for hook in hooks:
        hook.remove()
    tensors = (_nonfinite({key: x for key, x in item.items() if isinstance(x, Tensor)}) for item in items)
    if names := next(filter(None, tensors), ""):
        found.insert(0, f"its {names}")
    if terms := _nonfinite(losses):
        return [*found, f"losses: {terms}"]
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(sum(losses.values()), list(parameters.values()), allow_unused=True)
    if names := _nonfinite({name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}):
        found.append(f"gradients: {names}")
    return found


def _check_output(found: list[str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    outputs = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else [output]
    if not found and not all(torch.isfinite(x).all() for x in outputs if isinstance(x, Tensor)):
        found.append(f"first the output of {name}")


def _nonfinite(tensors: Mapping[str, Tensor]) -> str:
    names = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    more = f" and {len(names) - MAX_NAMES} more of {len(tensors)}" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of norms, which a nonfinite batch would destroy."""
    norms = [module for module in model.modules() if isinstance(module, RUNNING_NORMS)]
    return [x for norm in norms for x in (norm.running_mean, norm.running_var) if x is not None]


def save_for_replay(cfg: CfgNode, model: nn.Module, batch: Sequence[Item], iteration: int) -> Path:
    """Write each process's batch, and the weights once, to a new folder in OUTPUT_DIR; return this process's file."""
    folder = Path(cfg.OUTPUT_DIR) / f"bad_step_{iteration:07d}"
    folder.mkdir(exist_ok=True)
    if comm.is_main_process():
        write_checkpoint(folder / "model.pth", {"model": model.state_dict(), "config": cfg.dump()})
    file = folder / f"rank{comm.get_rank()}.pth"
    content = {"batch": [_to_plain(x) for x in batch], "iteration": iteration, "rank": comm.get_rank()}
    write_checkpoint(file, {**content, "config": cfg.dump()})
    groups.wait_for_all()  # the first process that exits may end the others
    return file


def replay(file: str | os.PathLike[str], device: str) -> list[str]:
    """Run `trace` on a file of `save_for_replay`, with the weights beside it, and return its sentences."""
    path = Path(file)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        batch = [_from_plain(item) for item in content["batch"]]
        iteration, rank = int(content["iteration"]), int(content["rank"])
    except Exception as error:  # torch.load raises almost anything
        raise UserError(f"{path} is not a batch saved for replay (rank<n>.pth): {error}") from error
    cfg = config_of_checkpoint(content, str(path))
    cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    weights = path.with_name("model.pth")
    load_weights(model, read_checkpoint(weights), str(weights))
    model.train()
    model.iteration = iteration + 1
    return trace(cfg, model, batch, rank)


def _to_plain(item: Item) -> dict[str, Any]:
    """Replace `Instances` and `Boxes`, which `torch.load(weights_only=True)` refuses, by their content."""
    item = dict(item)
    if "instances" in item:
        fields = item["instances"].get_fields()
        plain = {name: x.tensor if isinstance(x, Boxes) else x for name, x in fields.items()}
        item["instances"] = item["instances"].image_size, plain
    return item


def _from_plain(item: Item) -> dict[str, Any]:
    item = dict(item)
    if "instances" in item:
        size, fields = item["instances"]
        fields = {name: Boxes(x) if name == "gt_boxes" else x for name, x in fields.items()}
        item["instances"] = Instances(size, **fields)
    return item
