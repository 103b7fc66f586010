"""Merging of YAML files and overrides into a cfg, and checks of its values."""

import shlex
import sys
from functools import reduce
from operator import getitem
from typing import Any

import yaml
from detectron2.config import CfgNode as CN

from dformer.d2.config.defaults import RANGES
from dformer.utils.errors import UserError, did_you_mean


def merge_config(cfg: CN, config_file: str | None, opts: list[str]) -> None:
    """Merge a YAML file (or none) and `KEY VALUE` overrides into `cfg`.

    Raises:
        UserError: the file is missing or not YAML, a key does not exist (the nearest one is named), or a value is of
            the wrong type or out of range.
    """
    if config_file:
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except FileNotFoundError as error:
            raise UserError(f"config file {error.filename} does not exist") from error
        except Exception as error:
            raise UserError(f"config file {config_file}: {_explain(cfg, error)}") from error
    options = [word for word in opts if word.startswith("--")]
    if options:
        raise UserError(f"{options[0]} is among the KEY VALUE overrides; options go before them")
    if len(opts) % 2:
        raise UserError(f'overrides are pairs "KEY VALUE", got {len(opts)} words: {" ".join(opts)}')
    try:
        cfg.merge_from_list(opts)
    except Exception as error:
        raise UserError(_explain(cfg, error)) from error
    _check_values(cfg)


def merge_text(cfg: CN, text: str, where: str) -> None:
    """Merge YAML, such as the config in a checkpoint, into `cfg`; errors as of `merge_config`, which name `where`."""
    content = read_yaml(text, where)
    try:
        cfg.merge_from_other_cfg(CN(content))
    except Exception as error:
        raise UserError(f"{where}: {_explain(cfg, error)}") from error
    _check_values(cfg)


# Sines and cosines of x and y, groups of a group norm, sines and cosines of the time.
WIDTHS = (("MASK_DECODER", "HIDDEN_DIM", 4), ("PIXEL_DECODER", "CONV_DIM", 32), ("ROI_DECODER", "HIDDEN_DIM", 4))


def _check_values(cfg: CN) -> None:
    """Check the numbers of RANGES, and what widths have to be multiples of."""
    for key, (low, high) in RANGES.items():
        value = reduce(getitem, key.split("."), cfg)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{key} is {value!r}, expected a number in {low:g}..{high:g}")
    for decoder, width, divisor in WIDTHS:
        node = cfg.MODEL[decoder]
        if node[width] % divisor or node[width] % node.NUM_HEADS:
            wanted = f"a multiple of {divisor} and of its NUM_HEADS, {node.NUM_HEADS}"
            raise UserError(f"MODEL.{decoder}.{width} is {node[width]}, expected {wanted}")


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML with the safe loader and return plain values; a `UserError` names `where` if it is not YAML."""
    try:
        return yaml.safe_load(text)
    except Exception as error:  # also what constructors of dates or numbers raise
        raise UserError(f"{where} cannot be read as YAML: {error}") from error


def config_text(cfg: CN) -> str:
    """Return the cfg as YAML; its first line is a comment with the command of this process."""
    return f"# {shlex.join(['python', *sys.argv])}\n{cfg.dump()}"


def _explain(cfg: CN, error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    if "Non-existent" in text:
        key = text.rsplit(":", 1)[-1].strip()
        return f'there is no config key "{key}"{did_you_mean(key, _keys(cfg))} (all: dformer/d2/config/defaults.py)'
    return text or type(error).__name__


def _keys(node: CN, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, CN) else [prefix + name]
    return keys
