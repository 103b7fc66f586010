"""Convert a checkpoint of a published model (DFormer, Mask2Former) to ours, or ours to theirs.

dformer convert model_final_94dc52.pkl mask2former_r50.pth
dformer convert --to published output/model_final.pth model_final.pth
"""

from functools import reduce
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from dformer.apps.commands.arguments import command_parser
from dformer.d2.checkpoint.checkpointer import fetch_checkpoint
from dformer.d2.checkpoint.zoo import config_of_checkpoint
from dformer.d2.config import get_cfg, merge_config
from dformer.d2.data import model_classes
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.weights.checkpoint import write_checkpoint
from dformer.weights.loading import check, fit_weights, table
from dformer.weights.published.convert import our_system, to_published


def convert(
    source: str,
    target: str,
    to: str = "ours",
    config_file: str | None = None,
    averaged: bool = False,
    half: bool = False,
) -> str:
    """Convert a checkpoint.

    Args:
        source: a checkpoint of a whole model, ours or published; see `fetch_checkpoint`.
        target: file to write, `.pth` or `.safetensors`.
        to: "ours": with config and class names, and with the entries that only the published model has, so that the way
            back gives the same file; or "published".
        config_file: of the model; by default the one that `source` holds, or that of the published model.
        averaged: use the moving average of the weights in `source`.
        half: write matrices and kernels in float16, for a file of half the size. Models load it as float32.

    Returns:
        A summary of the entries.
    """
    if Path(target).suffix not in (".pth", ".safetensors"):
        raise UserError(f"{target}: give a file name that ends in .pth or .safetensors")
    checkpoint = fetch_checkpoint(source, averaged)
    cfg = get_cfg() if config_file else config_of_checkpoint(checkpoint, source)
    merge_config(cfg, config_file, [])
    with torch.device("meta"):
        expected = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
    fit = fit_weights(expected, checkpoint)
    check(fit, source, trained=True)
    if half:  # not vectors: they are small, and variances may be out of its range
        checkpoint["model"] = {
            name: x.half() if x.ndim > 1 and x.is_floating_point() else x for name, x in checkpoint["model"].items()
        }
    cfg.MODEL.CLASSES, cfg.MODEL.THINGS = (list(each) for each in model_classes(cfg))
    cfg.MODEL.EMA_DECAY = 0.0  # one set of weights is written
    if to == "ours":
        kept = {"left_out": checkpoint["left_out"]} if "left_out" in checkpoint else {}
        write_checkpoint(target, {"model": checkpoint["model"], "config": cfg.dump(), **kept})
    else:
        _check_settings(cfg, checkpoint["model"])
        system = our_system(checkpoint["model"])
        assert system is not None
        write_checkpoint(target, system.content(to_published(checkpoint["model"], checkpoint.get("left_out"))))
    return f"{table(fit)}\nwritten    {target}"


def _check_settings(cfg: CfgNode, weights: dict[str, torch.Tensor]) -> None:
    """Raise `UserError` where the config differs from what the published code has as a constant."""
    system = our_system(weights)
    for key, expected in system.settings.items() if system else ():
        value = reduce(getattr, key.split("."), cfg)
        if system and value != expected:
            raise UserError(f"{key} is {value}, but the published {system.name} knows {expected} only")


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="SRC", help="checkpoint: .pth, .pkl, .safetensors; also https://...")
    parser.add_argument("target", metavar="DST", help="file to write: .pth, or .safetensors")
    parser.add_argument("--to", choices=["ours", "published"], default="ours", help="default: ours")
    parser.add_argument("--config-file", metavar="FILE", help="config to write into DST; default: that of the model")
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights in SRC")
    parser.add_argument("--half", action="store_true", help="write matrices and kernels in float16: half the size")
    args = parser.parse_args()
    print(convert(args.source, args.target, args.to, args.config_file, args.ema, args.half))
