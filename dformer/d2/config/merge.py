"""From YAML files and overrides to a cfg whose values can be used."""

import os
import re
import shlex
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode as CN
from detectron2.utils.file_io import PathManager

from dformer.d2.config.defaults import RANGES
from dformer.utils.errors import UserError, did_you_mean

MAX_YAML = 4 << 20  # characters
MAX_DEPTH = 100
MAX_VALUES = 200_000  # counted as often as an alias stands for them


def merge_config(cfg: CN, config_file: str | None, opts: list[str]) -> None:
    """Merge a YAML file (or none) and `KEY VALUE` overrides into `cfg`.

    Raises:
        UserError: the file is missing or not YAML, a key does not exist (the nearest one is named), or a value is of
            the wrong type or out of range.
    """
    if config_file:
        _check_files(config_file)
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except FileNotFoundError as error:
            raise UserError(f"config file {error.filename} does not exist") from error
        except Exception as error:
            raise UserError(f"{config_file}: {_explain(cfg, error)}") from error
    options = [word for word in opts if word.startswith("--")]
    if options:
        raise UserError(f"{options[0]} stands among the KEY VALUE overrides; options go before them")
    if len(opts) % 2:
        raise UserError(f'overrides are pairs "KEY VALUE", got {len(opts)} words: {" ".join(opts)}')
    try:
        cfg.merge_from_list(opts)
    except Exception as error:
        raise UserError(_explain(cfg, error)) from error
    check_values(cfg)


def merge_text(cfg: CN, text: str, where: str) -> None:
    """Merge YAML into `cfg`, such as the config in a checkpoint.

    Raises:
        UserError: as `merge_config`, but for files.
    """
    try:
        cfg.merge_from_other_cfg(CN(read_yaml(text, where)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {_explain(cfg, error)}") from error
    check_values(cfg)


def check_values(cfg: CN) -> None:
    """Check the numbers that have a range, and those that have to fit each other.

    Raises:
        UserError: one does not; the key is named.
    """
    for key, (low, high) in RANGES.items():
        value = _value(cfg, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{key} is {value!r}, but must be a number in {low:g}..{high:g}")
    decoder, pixels = cfg.MODEL.MASK_DECODER, cfg.MODEL.PIXEL_DECODER
    for name, width, heads in (
        ("MODEL.MASK_DECODER.HIDDEN_DIM", decoder.HIDDEN_DIM, decoder.NUM_HEADS),
        ("MODEL.PIXEL_DECODER.CONV_DIM", pixels.CONV_DIM, pixels.NUM_HEADS),
    ):
        if width % heads:
            raise UserError(f"{name} is {width}, which its NUM_HEADS, {heads}, does not divide")


def read_yaml(text: str, where: str) -> Any:
    """What YAML says, as plain values.

    Raises:
        UserError: it is not YAML, or too large; `where` is named.
    """
    try:
        if len(text) > MAX_YAML:
            raise UserError(f"{where} is too large for a config: {len(text)} characters")
        if _depth(text) > MAX_DEPTH:
            raise UserError(f"{where} is nested too deeply for a config")
        value = yaml.safe_load(text)
    except UserError:
        raise
    except Exception as error:  # beside its own errors, what a constructor of dates or numbers raises
        raise UserError(f"{where} cannot be read as YAML: {_first_line(error)}") from error
    # An alias costs nothing in memory, but all that walks through the values meets them again and again.
    left, found = [value], 0
    while left:
        entry = left.pop()
        found += 1
        if found > MAX_VALUES:
            raise UserError(f"{where} is too large for a config: its aliases (*name) stand for too many values")
        left += [*entry, *entry.values()] if isinstance(entry, dict) else entry if isinstance(entry, list) else []
    return value


def _depth(text: str) -> int:
    """How deep the brackets of a text are nested: PyYAML needs a minute for some thousands."""
    steps = (1 if mark in "[{" else -1 for mark in re.findall(r"[][{}]", text))
    return max(accumulate(steps), default=0)


def _check_files(config_file: str) -> None:
    """Read a config file and those that it is based on, before Detectron2 does, which sets no limits."""
    seen: list[str] = []
    file: Any = config_file
    while isinstance(file, str):
        if file in seen or len(seen) == 100:
            raise UserError(f"{config_file} is based on itself: _BASE_ leads from {seen[-1]} to {file}")
        seen.append(file)
        try:
            text = Path(PathManager.get_local_path(file)).read_text()
        except FileNotFoundError as error:
            raise UserError(f"config file {file} does not exist") from error
        except (OSError, ValueError) as error:
            raise UserError(f"config file {file} cannot be read: {error}") from error
        content = read_yaml(text, file)
        if not isinstance(content, dict):
            raise UserError(f"config file {file} holds no `KEY: value` pairs")
        base = content.get("_BASE_")
        file = base
        if isinstance(base, str):
            base = os.path.expanduser(base)
            is_absolute = base.startswith(("/", "https://", "http://"))
            file = base if is_absolute else os.path.join(os.path.dirname(seen[-1]), base)


def config_text(cfg: CN) -> str:
    """The cfg as YAML, with the command that this process was started with as its first line, a comment."""
    return f"# {shlex.join(['python', *sys.argv])}\n{cfg.dump()}"


def _value(cfg: CN, key: str) -> Any:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _explain(cfg: CN, error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    if "Non-existent" in text:
        key = text.rsplit(":", 1)[-1].strip()
        return f'there is no config key "{key}"{did_you_mean(key, _keys(cfg))} (all: dformer/d2/config/defaults.py)'
    return text or type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _keys(node: CN, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, CN) else [prefix + name]
    return keys
