"""Weights of a checkpoint into a model: all of them, or a clear account of what did not fit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from dformer.utils.errors import UserError
from dformer.weights.imagenet import from_imagenet
from dformer.weights.published.convert import our_system
from dformer.weights.published.mask2former import window_size

CLASS_EMBED = re.compile(r"(.*\.)?class_embed\..*")
QUERIES = re.compile(r"(.*\.)?query_(feat|embed)")  # (N, C), a row a query
# What no pretrained backbone has: the norms of the maps that the decoder sees, the pyramid over a vision transformer.
NOT_PRETRAINED = re.compile(r"backbone\.(norms|pyramid)\..*")
PATCHES = "patch_embed.proj.weight"  # (D, 3, pixels, pixels)
PAST_MAPS = re.compile(r"head\.decoder\.conv_in\.weight")  # its last input channels are those of past maps
COUNTER = ".num_batches_tracked"  # of batch norms; frozen ones here have none
BIAS_TABLE = ".relative_position_bias_table"
SHOWN = 10  # names of a kind in an error message


@dataclass
class Fit:
    """Hold how the entries of a file fit the parameters and buffers of a model."""

    origin: str  # kind of file
    loaded: dict[str, Tensor] = field(default_factory=dict)  # in the shapes of the model
    renamed: int = 0  # how many have another name in the file
    resized: dict[str, str] = field(default_factory=dict)  # loaded, but in another size -> from which to which
    partial: dict[str, str] = field(default_factory=dict)  # loaded in part -> of how many rows the first, for how many
    dropped: dict[str, str] = field(default_factory=dict)  # entries of the file that no model needs -> why
    unexpected: list[str] = field(default_factory=list)  # other entries that this model has no place for
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)  # -> both shapes
    # What keeps its initial value on purpose -> why: the head with a pretrained backbone, or with other classes.
    reinitialized: dict[str, str] = field(default_factory=dict)


def load(model: nn.Module, checkpoint: Mapping[str, Any], path: str, strict: bool = True, trained: bool = False) -> Fit:
    """Load the weights of a checkpoint, of a whole model or of a backbone pretrained on ImageNet.

    Args:
        checkpoint: as `dformer.weights.checkpoint.read_checkpoint` returns it.
        path: of the file, for messages.
        strict: raise an error if there are unexpected, missing or mismatched keys.
        trained: the model is going to be used, not trained, so that reinitialized and partial keys are an error, too.

    Raises:
        UserError: the file does not fit, and `strict`; or it has nothing in common with the model. The model is then
            unchanged.
    """
    fit = fit_weights(model.state_dict(), checkpoint)
    ours = [name for name, _ in model.named_parameters()]
    if fit.loaded.keys().isdisjoint(ours):
        raise UserError(
            f"{path} holds no parameter of this model: it has {_some(list(checkpoint['model']))} and the model "
            f"{_some(ours)}. Is it the checkpoint of another model or config?"
        )
    if strict:
        check(fit, path, trained)
    model.load_state_dict(fit.loaded, strict=False)
    return fit


def fit_weights(expected: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> Fit:
    """Match the weights of a checkpoint with the parameters and buffers that a model expects.

    A checkpoint that has no name in common with the model is taken for a classifier pretrained on ImageNet.
    """
    weights, dropped = checkpoint["model"], dict(checkpoint.get("dropped", {}))
    system = our_system(weights)
    kind = "a published " if "dropped" in checkpoint else "a "
    fit = Fit(kind + system.name if system else "weights", renamed=checkpoint.get("renamed", 0), dropped=dropped)
    is_backbone = expected.keys().isdisjoint(weights)
    if is_backbone:
        weights, fit.dropped = from_imagenet(weights, expected)
        fit.origin, fit.renamed = "a pretrained backbone", len(weights)
    for name, tensor in weights.items():
        if name in expected:
            _fit_tensor(fit, name, tensor, expected[name])
        elif not name.endswith(COUNTER):
            fit.unexpected.append(name)
    for name in expected:
        if name in weights or name.endswith(COUNTER):
            continue
        if is_backbone and (not name.startswith("backbone.") or NOT_PRETRAINED.fullmatch(name)):
            fit.reinitialized[name] = "not part of a pretrained backbone"
        else:
            fit.missing.append(name)
    return fit


def _fit_tensor(fit: Fit, name: str, tensor: Tensor, expected: Tensor) -> None:
    theirs, shape = tuple(tensor.shape), tuple(expected.shape)
    if theirs == shape:
        fit.loaded[name] = tensor
    elif name.endswith(BIAS_TABLE) and theirs[1:] == shape[1:]:
        fit.loaded[name] = resize_bias_table(tensor, shape[0])
        fit.resized[name] = f"windows of {window_size(len(tensor))} -> {window_size(shape[0])}"
    elif name.endswith(PATCHES) and theirs[:2] == shape[:2]:
        fit.loaded[name] = resample_patch_embed(tensor, list(shape[2:]))
        fit.resized[name] = f"patches of {theirs[2]} pixels -> {shape[2]}"
    elif PAST_MAPS.fullmatch(name) and theirs[0] == shape[0] and theirs[1] < shape[1]:
        fit.loaded[name] = F.pad(tensor, (0, 0, 0, 0, 0, shape[1] - theirs[1]))
        fit.resized[name] = f"{theirs[1]} -> {shape[1]} channels, zeros for the past maps of a video model"
    elif QUERIES.fullmatch(name) and theirs[1:] == shape[1:]:
        kept = tensor[: len(expected)].to(expected)
        fit.loaded[name] = torch.cat([kept, expected[len(kept) :]])  # further queries begin anew
        fit.partial[name] = f"{theirs[0]} queries in the file, {shape[0]} here: the first {len(kept)} are taken"
    elif CLASS_EMBED.fullmatch(name) and theirs[1:] == shape[1:]:
        fit.reinitialized[name] = f"{theirs[0]} class logits in the file, {shape[0]} here"
    else:
        fit.mismatched[name] = f"{theirs} in the file and {shape} here"


def check(fit: Fit, path: str, trained: bool) -> None:
    """Raise `UserError` where there are keys that `load` does not allow."""
    shapes = [f"{name} {what}" for name, what in fit.mismatched.items()]
    kinds = {"mismatched": shapes, "missing": fit.missing, "unexpected": fit.unexpected}
    for kind in ("reinitialized", "partial") if trained else ():
        kinds[kind] = [f"{name}: {reason}" for name, reason in getattr(fit, kind).items()]
    problems = [f"{len(names)} {kind} ({_some(names, SHOWN)})" for kind, names in kinds.items() if names]
    if problems:
        remedy = "" if trained else ", or set MODEL.WEIGHTS_STRICT to False to load what fits"
        raise UserError(
            f"{path} ({fit.origin}) does not fit the model of this config: {'; '.join(problems)}. "
            f"Use the config that it was trained with, overrides included{remedy}"
        )


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resize Swin's biases by relative position, (rows', heads) -> (rows, heads), for windows of another size.

    Bicubic over the (2 w - 1) x (2 w - 1) positions, as in the authors' code for transfer to other windows.
    """
    old, new = round(len(table) ** 0.5), round(rows**0.5)
    square = table.float().T.reshape(1, -1, old, old)
    resized = F.interpolate(square, (new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).T.to(table.dtype)


def table(fit: Fit) -> str:
    """Summarize a load, a line for each kind and reason."""
    renamed = f", {fit.renamed} renamed" if fit.renamed else ""
    lines = [_line("loaded", len(fit.loaded), f"of {fit.origin}{renamed}")]
    for kind in ("resized", "partial", "dropped", "reinitialized"):
        entries = getattr(fit, kind)
        for reason in dict.fromkeys(entries.values()):
            names = [name for name, why in entries.items() if why == reason]
            lines.append(_line(kind, len(names), f"{reason}: {_some(names)}"))
    for kind in ("mismatched", "missing", "unexpected"):
        names = list(getattr(fit, kind))
        lines += [_line(kind, len(names), _some(names))] if names else []
    return "\n".join(lines)


def _line(kind: str, count: int, text: str) -> str:
    return f"{kind:13} {count:5}  {text}"


def _some(names: list[str], limit: int = 2) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
