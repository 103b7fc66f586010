"""Weights of a checkpoint into a model: all of them, or a clear account of what did not fit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dformer.utils.errors import UserError
from dformer.weights.imagenet import from_imagenet

CLASS_HEAD = re.compile(r"head\.mask_decoder\.class_embed\.(weight|bias)")
# What no pretrained backbone has: the norms of the maps that the decoder sees.
NOT_PRETRAINED = re.compile(r"backbone\.norms\..*|.*\.num_batches_tracked")
BIAS_TABLE = ".relative_position_bias_table"
SHOWN = 10  # names of a kind in a message


@dataclass
class Fit:
    """Where the entries of a file went, and what the model's parameters and buffers got.

    Attributes:
        origin: of what kind the file is.
        loaded: what goes into the model, in the shapes that it has there.
        renamed: how many of these have another name in the file.
        resized: of these, the tables that were resized, with what was done.
        left_out: entries of the file that no model needs -> the reason.
        surplus: entries of the file that this model has no place for.
        mismatched: names whose shapes differ -> shape in the file, shape in the model.
        class_head: the names among these that belong to the class head.
        missing: names of the model that the file lacks though it should have them.
        initial: names of the model that keep their initial value, for a reason: all of it but the backbone.
    """

    origin: str
    loaded: dict[str, Tensor] = field(default_factory=dict)
    renamed: int = 0
    resized: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    surplus: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    class_head: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)


def load(model: nn.Module, checkpoint: Mapping[str, Any], path: str, strict: bool = True, trained: bool = False) -> Fit:
    """Load the weights of a checkpoint, of a whole model or of a backbone pretrained on ImageNet.

    Args:
        checkpoint: as `dformer.weights.checkpoint.read_checkpoint` returns it.
        path: of the file, for messages.
        strict: nothing of the model may be left as it is by accident, and nothing of the file left over. Meant to be
            left, and told, are: all but the backbone where the file holds only that, and a class head of another size.
        trained: the model is going to be used, not trained: these two are accidents as well.

    Raises:
        UserError: the file does not fit, and `strict`; or it has nothing in common with the model. The model is as
            it was.
    """
    fit = fit_weights(model.state_dict(), checkpoint)
    if not any(name in fit.loaded for name, _ in model.named_parameters()):
        theirs, ours = list(checkpoint["model"]), [name for name, _ in model.named_parameters()]
        raise UserError(
            f"{path} holds no parameter of this model: it has {', '.join(theirs[:3])}, ... and the model "
            f"{', '.join(ours[:3])}, ... Is it the checkpoint of another model or config?"
        )
    if strict:
        check(fit, path, trained)
    model.load_state_dict(fit.loaded, strict=False)
    return fit


def fit_weights(expected: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> Fit:
    """Match the weights of a checkpoint with the parameters and buffers that a model expects."""
    weights, left_out = checkpoint["model"], dict(checkpoint.get("dropped", {}))
    is_backbone = not any(name.startswith(("backbone.", "head.mask_decoder.")) for name in weights)
    origin = describe(weights).replace("a ", "a published ", 1) if "dropped" in checkpoint else describe(weights)
    fit = Fit(origin, left_out=left_out, renamed=checkpoint.get("renamed", 0))
    if is_backbone:
        fit.origin = "a pretrained backbone"
        weights, fit.left_out = from_imagenet(weights, expected)
        fit.renamed = len(weights)
    for name, tensor in weights.items():
        if name not in expected:
            if not name.endswith(".num_batches_tracked"):  # a batch norm that is frozen here
                fit.surplus.append(name)
            continue
        shape = tuple(expected[name].shape)
        if name.endswith(BIAS_TABLE) and len(tensor) != shape[0] and tensor.shape[1] == shape[1]:
            tensor = resize_bias_table(tensor, shape[0])
            fit.resized[name] = f"{_window(len(weights[name]))} -> {_window(shape[0])}"
        if tuple(tensor.shape) == shape:
            fit.loaded[name] = tensor
        else:
            fit.mismatched[name] = tuple(tensor.shape), shape
            if CLASS_HEAD.fullmatch(name):
                fit.class_head.append(name)
    for name in expected:
        if name not in weights and not name.endswith(".num_batches_tracked"):
            is_left = is_backbone and (not name.startswith("backbone.") or NOT_PRETRAINED.fullmatch(name))
            (fit.initial if is_left else fit.missing).append(name)
    return fit


def check(fit: Fit, path: str, trained: bool) -> None:
    """Raise `UserError` where something was left by accident; see `load`."""
    mismatched = [name for name in fit.mismatched if trained or name not in fit.class_head]
    shapes = [f"{name} {fit.mismatched[name][0]} in the file and {fit.mismatched[name][1]} here" for name in mismatched]
    missing = fit.missing + (fit.initial if trained else [])
    problems = [
        f"{len(names)} {what} ({_some(names, SHOWN)})"
        for what, names in [("of another shape", shapes), ("missing", missing), ("not in the model", fit.surplus)]
        if names
    ]
    if problems:
        remedy = "" if trained else ", or set MODEL.WEIGHTS_STRICT to False to load what fits"
        raise UserError(
            f"{path} ({fit.origin}) does not fit the model of this config: {'; '.join(problems)}. "
            f"Use the config that it was trained with, overrides included{remedy}"
        )


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Swin's biases by relative position, (rows', heads) -> (rows, heads), for windows of another size.

    Bicubic over the (2 w - 1) x (2 w - 1) positions, as in the authors' code for transfer to other windows.
    """
    old, new = round(len(table) ** 0.5), round(rows**0.5)
    square = table.float().T.reshape(1, -1, old, old)
    resized = F.interpolate(square, (new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).T.to(table.dtype)


def describe(weights: Mapping[str, Tensor]) -> str:
    """What a state dict under our names is of: "a DFormer for 133 classes", ..."""
    if "head.mask_decoder.class_embed.bias" not in weights:
        return "weights"
    system = "Mask2Former" if "head.query_feat" in weights else "DFormer"
    return f"a {system} for {len(weights['head.mask_decoder.class_embed.bias']) - 1} classes"


def table(fit: Fit) -> str:
    """A short account of a load, a line a kind."""
    lines = [f"loaded     {len(fit.loaded):5}  of {fit.origin}" + (f", {fit.renamed} renamed" if fit.renamed else "")]
    if fit.resized:
        name, what = next(iter(fit.resized.items()))
        lines.append(f"resized    {len(fit.resized):5}  {name}, ...: windows of {what}")
    for reason in dict.fromkeys(fit.left_out.values()):
        names = [name for name, why in fit.left_out.items() if why == reason]
        lines.append(f"left out   {len(names):5}  {reason}: {_some(names)}")
    if fit.surplus:
        lines.append(f"left out   {len(fit.surplus):5}  not in this model: {_some(fit.surplus)}")
    if fit.class_head:
        theirs, ours = fit.mismatched[fit.class_head[0]]
        lines.append(
            f"initial    {len(fit.class_head):5}  the class head begins anew: {theirs[0] - 1} classes in the file, "
            f"{ours[0] - 1} here"
        )
    others = [name for name in fit.mismatched if name not in fit.class_head]
    if others:
        lines.append(f"initial    {len(others):5}  of another shape in the file: {_some(others)}")
    if fit.initial:
        lines.append(f"initial    {len(fit.initial):5}  not part of a pretrained backbone: {_some(fit.initial)}")
    if fit.missing:
        lines.append(f"initial    {len(fit.missing):5}  missing in the file: {_some(fit.missing)}")
    return "\n".join(lines)


def _some(names: list[str], limit: int = 2) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _window(rows: int) -> int:
    return (round(rows**0.5) + 1) // 2
