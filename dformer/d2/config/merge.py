"""Merging of YAML files and overrides into a cfg, and checks of its values."""

import shlex
import sys
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode as CN

from dformer.d2.config.defaults import RANGES
from dformer.d2.config.files import find_config
from dformer.data.declarations import ROOT, resolve_path, with_paths
from dformer.data.forms import folder_of
from dformer.data.prepare import default_root
from dformer.utils.errors import UserError, did_you_mean


class _Reader(CN):
    """Read config files with the paths of DATASETS.CUSTOM relative to the file that has them, as `_BASE_` is."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        content: dict[str, Any] = super().load_yaml_with_base(filename, allow_unsafe)
        datasets = (content or {}).get("DATASETS")
        if isinstance(datasets, dict) and "CUSTOM" in datasets:
            change = partial(_beside, filename)
            datasets["CUSTOM"] = with_paths(datasets["CUSTOM"], change, change)  # those of a base are absolute by now
        return content


def _beside(config_file: str, path: str) -> str:
    """Return the absolute path of one in a config file."""
    found, other = _absolute(path, Path(config_file).parent), Path(default_root(), path)
    if not path.startswith(ROOT) and not folder_of(Path(found)).exists() and folder_of(other).exists():
        raise UserError(
            f"DATASETS.CUSTOM: there is no {found}; paths are relative to the config that they are in. For {other}, "
            f"write {ROOT}/{path}"
        )
    return found


def _absolute(path: str, folder: Path) -> str:
    return path if path.startswith(ROOT) else str(resolve_path(path, folder.resolve()))


def _typed(path: str) -> str:
    """Return a path in a declaration on the command line, where it is relative to the folder of all data sets."""
    path = str(Path(path).expanduser())
    return path if path.startswith(("/", ROOT)) else f"{ROOT}/{path}"


def merge_config(cfg: CN, config_file: str | None, opts: list[str]) -> None:
    """Merge a YAML file (or none) and `KEY VALUE` overrides into `cfg`.

    Paths in DATASETS.CUSTOM are made independent of the file and of the working directory: in a config file they are
    relative to it; among the overrides, those of YAML files are relative to the working directory, and those in a
    declaration to `$DETECTRON2_DATASETS`.

    Raises:
        UserError: the file is missing or not YAML, a key does not exist (the nearest one is named), or a value is of
            the wrong type or out of range.
    """
    if config_file:
        config_file = find_config(config_file)
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
            datasets = _Reader.load_yaml_with_base(config_file).get("DATASETS") or {}
            cfg.DATASETS.CUSTOM = datasets.get("CUSTOM", cfg.DATASETS.CUSTOM)
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
    if "DATASETS.CUSTOM" in opts:
        cfg.DATASETS.CUSTOM = with_paths(cfg.DATASETS.CUSTOM, partial(_absolute, folder=Path()), _typed)
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
    command, *arguments = sys.argv  # of `dformer train`: that, as one word
    program = command if command.startswith("dformer ") else shlex.join(["python", command])
    return f"# {program} {shlex.join(arguments)}\n{cfg.dump()}"


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
