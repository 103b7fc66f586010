"""Reading and writing of checkpoint files.

Reading never runs code, although `.pth` and `.pkl` files are pickles: a `.pth` file is read by
`torch.load(weights_only=True)`, a `.pkl` file of Detectron2's or Detectron's model zoo by an unpickler that makes plain
values and arrays of numbers only. The checksums in a `.pth` file, which `torch.load` ignores, are verified.
"""

import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from dformer.utils.errors import UserError
from dformer.utils.files import atomic_write
from dformer.weights.names import from_old_names
from dformer.weights.published.convert import from_published, published_system
from dformer.weights.published.ldmseg import joined

logger = logging.getLogger(__name__)

# Keys under which files hold a state dict (the first one found counts), and a moving average of the weights.
STATE_DICTS = ("model", "state_dict", "model_state_dict")
AVERAGES = ("ema_state", "model_ema", "state_dict_ema", "ema_state_dict", "ema")
# Beside tensors, what files may hold: numbers of NumPy's, such as the PQ of a best model (LDMSeg).
_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
NUMPY_SCALARS += [np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]


def read_checkpoint(path: str | Path, averaged: bool = False) -> dict[str, Any]:
    """Read a checkpoint: the state dict of the model, on the CPU, and what was saved with it.

    Formats: `.safetensors`; `.pkl` as in the model zoos of Detectron2 and Detectron; anything else as `torch.save`
    writes it, either `{"model": state dict, ...}` or a bare state dict. Names of published models
    (`dformer.weights.published`) and of our earlier versions (`dformer.weights.names`) are changed to today's.

    Args:
        path: a local file.
        averaged: read the moving average of the weights (EMA) instead of the last weights.

    Returns:
        "model": the state dict; "renamed": how many of its names were changed, if any; further keys as in the file
        ("optimizer", "iteration", "config", ...). For a published one also "dropped", name -> why no model needs it,
        and "left_out", the tensors of these names. Files of the model zoos have "__author__".

    Raises:
        UserError: the file is missing, damaged or no checkpoint, or has no average although `averaged` is set.
    """
    path = Path(path)
    checkpoint = _unwrapped(path, _read(path), averaged)
    _check_state_dict(path, checkpoint["model"])
    names = set(checkpoint["model"])
    if system := published_system(names):
        published = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
        checkpoint["model"], dropped = from_published(published, system)
        checkpoint |= {"dropped": dropped, "left_out": {name: published[name] for name in dropped}}
    for key in ("model", *AVERAGES):
        weights = checkpoint.get(key)
        if isinstance(weights, dict) and all(isinstance(name, str) for name in weights):
            checkpoint[key] = from_old_names(weights)
    if renamed := checkpoint["model"].keys() - names:
        checkpoint["renamed"] = len(renamed)
    return checkpoint


def write_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint, {"model": state dict, ...}, atomically: a `.safetensors` holds the model and strings only."""
    path = Path(path)
    with atomic_write(path) as partial:
        if path.suffix == ".safetensors":
            texts = {key: value for key, value in checkpoint.items() if isinstance(value, str)}
            partial.touch()
            rights = partial.stat().st_mode  # safetensors writes a file that only its owner can read
            save_safetensors({name: x.contiguous() for name, x in checkpoint["model"].items()}, partial, texts)
            partial.chmod(rights)
        else:
            with partial.open("wb") as file:  # given a path, torch would not say why it cannot write
                torch.save(dict(checkpoint), file)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {"model": {name: file.get_tensor(name) for name in file.keys()}} | (file.metadata() or {})  # noqa: SIM118
        if path.suffix == ".pkl":
            return _read_model_zoo(path)
        _check_sums(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader that meets arbitrary bytes raises nearly anything
        raise UserError(f"weights file {path} cannot be read: {_explain(path, error)}") from error


def _check_sums(path: Path) -> None:
    """Raise `BadZipFile` if a part of the archive is damaged. Files from before PyTorch 1.6 have no checksums."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # PyTorch does not compress; a small file that claims to be compressed could take forever.
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()) or archive.testzip():
            raise zipfile.BadZipFile


def _unwrapped(path: Path, content: Any, averaged: bool) -> dict[str, Any]:
    """`content` with the state dict at "model"."""
    entries = dict(content) if isinstance(content, dict) else {}
    if parts := joined(entries):
        return {"model": parts}
    average = next((key for key in AVERAGES if isinstance(entries.get(key), dict)), None)
    plain = next((key for key in STATE_DICTS if key in entries), None)
    if averaged and average is None:
        raise UserError(f"{path} holds no moving average of the weights (under any of {', '.join(AVERAGES)})")
    if average and plain and not averaged:
        logger.info(f'{path} also holds a moving average of the weights, "{average}"; the last weights are used')
    key = average if averaged or plain is None else plain
    if key is None:
        return {"model": content}
    weights = entries.pop(key)
    return entries | {"model": weights}


def _check_state_dict(path: Path, weights: Any) -> None:
    if not isinstance(weights, dict) or not weights:
        raise UserError(
            f"{path} is not a checkpoint: expected a state dict with entries, not a {type(weights).__name__}"
        )
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            entry = name if isinstance(name, str) else type(name).__name__  # any other key's text may have no end
            raise UserError(
                f'{path} is not a checkpoint: its entry "{entry}" is a {type(value).__name__}, not a tensor; '
                'expected {"model": state dict, ...} or a state dict'
            )
        # An expanded view of one number can have any size once it is copied.
        if value.layout != torch.strided or value.is_meta or value.nbytes > path.stat().st_size:
            raise UserError(f'{path}: the tensor "{name}", {tuple(value.shape)}, is not one that the file holds whole')


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        return "it is empty; was a download or a copy cut off?"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"it contains {forbidden[1]}, and loading that could run code; only tensors and plain values are read. "
            "If you trust the file, save its state dict again with torch.save"
        )
    if path.suffix != ".pkl" and head.startswith(b"pk\x03\x04"):
        return "it is damaged or cut off; copy or download it again"
    return f"it is damaged or of another format ({type(error).__name__})"


def _read_model_zoo(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        zoo = _ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(zoo, dict):
        return {"model": zoo}
    if "model" not in zoo:  # Detectron (Caffe2): arrays by name, under "blobs" where there is more than a backbone
        zoo = {"model": zoo.get("blobs", zoo), "__author__": "Caffe2", "matching_heuristics": True}
    if isinstance(zoo["model"], dict):
        arrays = {name: value for name, value in zoo["model"].items() if not str(name).endswith("_momentum")}
        zoo["model"] = {name: x.tensor() if isinstance(x, _Array) else x for name, x in arrays.items()}
    return zoo


class _Dtype:
    """Replaces `numpy.dtype` in a pickle: numbers and booleans only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[<>|=]?[fiub][1248]", code):
            raise pickle.UnpicklingError(f"arrays of dtype {code!r} are not read")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Replaces `numpy.ndarray` in a pickle, since NumPy's own unpickling trusts the file."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.zeros(0, np.float32)

    def __setstate__(self, state: tuple[Any, tuple[int, ...], _Dtype, bool, bytes | str]) -> None:
        _, shape, dtype, is_fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # str: written by Python 2
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if is_fortran else "C")

    def tensor(self) -> Tensor:
        return torch.from_numpy(np.array(self.value, self.value.dtype.newbyteorder("="), order="C"))


def _array_from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _ArrayUnpickler(pickle.Unpickler):
    """Makes plain values and arrays; every other global of the pickle is refused."""

    _globals: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": str.encode,
        "__builtin__.bytes": lambda: b"",  # of an empty array in Python 2; `bytes` itself can be called with any size
        "numpy.dtype": _Dtype,
        "numpy.ndarray": _Array,
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy.core.numeric._frombuffer": _array_from_buffer,
        "numpy._core.numeric._frombuffer": _array_from_buffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        found = self._globals.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not an array")
        return found
