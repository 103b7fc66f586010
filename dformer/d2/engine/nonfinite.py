"""Training steps with numbers that are not finite: where these come from, and how to run such a step again.

All that is slow here (a second run, copies to the host) happens after a step was found to be bad.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dformer.d2.checkpoint.checkpointer import load_weights
from dformer.d2.checkpoint.zoo import config_of_checkpoint
from dformer.d2.config.device import amp_dtype
from dformer.losses.criterion import Criterion
from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint, write_checkpoint

Item = Mapping[str, Any]  # an image, as the model takes it

SHOWN = 8  # names in a sentence


def bad_gradients(model: nn.Module) -> str:
    """Names of the parameters whose gradient is not finite, as a clause; empty where there are none."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return _named(gradients)


def trace(cfg: CfgNode, model: nn.Module, batch: Sequence[Item]) -> list[str]:
    """Run the last step again, each image by itself, and look where its numbers stop to be finite.

    Neither the model, nor its gradients, nor global random states change, but for running statistics of norms. In a
    group of processes all have to call this, with batches of one size.

    Args:
        model: in training mode, after its forward with `batch`.

    Returns:
        A sentence an image: its pixels, the first module, matching costs, losses or gradients that are not finite.
    """
    iteration: Any = model.iteration
    dtype, device = amp_dtype(cfg), torch.device(cfg.MODEL.DEVICE)
    sentences = []
    for item in batch:
        model.iteration = iteration - 1  # what the model draws for an image depends on it
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
        ):
            found = _trace_image(model, item)
        sentences.append(f"{_name(item)}: {'; '.join(found) or 'finite when it is run again by itself'}")
    model.iteration = iteration
    return sentences


def _trace_image(model: nn.Module, item: Item) -> list[str]:
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Criterion):
            hooks.append(module.register_forward_pre_hook(partial(_look_at_costs, found)))
        elif not any(module.children()):
            hooks.append(module.register_forward_hook(partial(_look_at_output, found, name)))
    try:
        losses = model([item])
    finally:
        for hook in hooks:
            hook.remove()
    if pixels := _named({key: value for key, value in item.items() if isinstance(value, Tensor)}):
        found.insert(0, f"its {pixels}")
    if terms := _named(losses):
        return [*found, f"losses: {terms}"]
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(sum(losses.values()), list(parameters.values()), allow_unused=True)
    if names := _named({name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}):
        found.append(f"gradients: {names}")
    return found


def _look_at_output(found: list[str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    outputs = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else [output]
    if not found and not all(torch.isfinite(x).all() for x in outputs if isinstance(x, Tensor)):
        found.append(f"first the output of {name}")


def _look_at_costs(found: list[str], criterion: Criterion, inputs: tuple[Any, ...]) -> None:
    logits, masks, targets, generators = inputs
    copies = [torch.Generator(g.device).set_state(g.get_state()) for g in generators]  # the run is to draw as ever
    (costs,) = criterion.costs(logits.float(), masks, targets, copies)
    layers = [str(layer) for layer, cost in enumerate(costs) if not torch.isfinite(cost).all()]
    if layers:
        found.append(f"matching costs of layer {', '.join(layers)}")


def _named(tensors: Mapping[str, Tensor]) -> str:
    names = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    more = f" and {len(names) - SHOWN} more of {len(tensors)}" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _name(item: Item) -> str:
    file = f" ({item['file_name']})" if "file_name" in item else ""
    return f"image {item.get('image_id', 'without id')}{file}"


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The means and variances that norms keep, which one bad batch would spoil for good; most models have none."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [x for norm in norms for x in (norm.running_mean, norm.running_var) if x is not None]


def save_for_replay(cfg: CfgNode, model: nn.Module, batch: Sequence[Item], iteration: int) -> Path:
    """Write the batches of all processes, and once the weights, to a new folder in OUTPUT_DIR.

    Returns:
        This process's file, for `replay`.
    """
    folder = Path(cfg.OUTPUT_DIR) / f"bad_step_{iteration:07d}"
    folder.mkdir(exist_ok=True)
    if comm.is_main_process():
        write_checkpoint(folder / "model.pth", {"model": model.state_dict(), "config": cfg.dump()})
    file = folder / f"rank{comm.get_rank()}.pth"
    content = {"batch": [_plain(item) for item in batch], "iteration": iteration, "config": cfg.dump()}
    write_checkpoint(file, content)
    comm.synchronize()  # the first that leaves may end all
    return file


def replay(file: str | os.PathLike[str], device: str) -> list[str]:
    """`trace` on what `save_for_replay` has written, with the weights that lie beside it.

    Raises:
        UserError: `file` is not such a file, or the weights are missing or do not fit.
    """
    path = Path(file)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        batch, iteration = [_item(plain) for plain in content["batch"]], int(content["iteration"])
    except Exception as error:  # as of any checkpoint
        raise UserError(f"{path} is not a batch saved for replay (rank<n>.pth): {error}") from error
    cfg = config_of_checkpoint(content, str(path))
    cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    weights = path.with_name("model.pth")
    load_weights(model, read_checkpoint(weights), str(weights))
    model.train()
    model.iteration = iteration + 1
    return trace(cfg, model, batch)


def _plain(item: Item) -> dict[str, Any]:
    return {key: _plain_instances(x) if isinstance(x, Instances) else x for key, x in item.items()}


def _plain_instances(instances: Instances) -> dict[str, Any]:
    return {"size": list(instances.image_size), "fields": instances.get_fields()}


def _item(plain: Item) -> dict[str, Any]:
    item = dict(plain)
    if "instances" in item:
        size, fields = item["instances"]["size"], item["instances"]["fields"]
        item["instances"] = Instances((size[0], size[1]), **fields)
    return item
