"""Weights from files, without running what is in them.

`.pth` and `.pkl` files are pickles, and a pickle can run any code when it is loaded. Here a `.pth` file goes through
`torch.load(weights_only=True)`, a `.pkl` file of Detectron2's or Detectron's model zoo through an unpickler that
makes plain values and number arrays only, and `.safetensors` cannot hold anything else.
"""

import logging
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from dformer.errors import UserError
from dformer.published import from_published, is_published

logger = logging.getLogger(__name__)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a model, on the CPU.

    Args:
        path: a local file, of any format that `read_checkpoint` reads.

    Returns:
        Parameters and buffers by name.

    Raises:
        UserError: see `read_checkpoint`.
    """
    return read_checkpoint(path)["model"]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint whole: the state dict of the model and what was saved beside it. Tensors are on the CPU.

    Formats: `.safetensors`; `.pkl` as in the model zoos of Detectron2 and Detectron; anything else as `torch.save`
    writes it, either `{"model": state dict, ...}` or a bare state dict.

    Args:
        path: a local file.

    The weights of a published DFormer or Mask2Former get our names (`dformer.published`).

    Returns:
        "model": the state dict; further keys as they stand in the file ("optimizer", "iteration", ...). Files of the
        model zoos have "__author__", and "matching_heuristics": True where Detectron2 has to translate the names.

    Raises:
        UserError: the file does not exist, is not a checkpoint, is damaged, or holds something other than tensors
            and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a checkpoint file (.pth, .safetensors, .pkl) was expected")
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if path.stat().st_size == 0:
        raise UserError(f"weights file {path} is empty; was a download or a copy cut off?")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_safetensors(path)
        elif path.suffix == ".pkl":
            content = _read_model_zoo(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader that meets arbitrary bytes raises nearly anything
        raise UserError(f"{path} cannot be read as a checkpoint: {_explain(path, error)}") from error
    checkpoint = content if isinstance(content, dict) and "model" in content else {"model": content}
    _check_state_dict(path, checkpoint["model"])
    if is_published(checkpoint["model"]):
        checkpoint["model"], dropped = from_published(checkpoint["model"])
        logger.info(f"{path} is a published checkpoint: renamed; left out: {', '.join(dropped) or 'nothing'}")
    return checkpoint


def _check_state_dict(path: Path, weights: Any) -> None:
    if not isinstance(weights, dict) or not weights:
        what = "an empty one" if isinstance(weights, dict) else f"a {type(weights).__name__}"
        raise UserError(f"{path} is not a checkpoint: a state dict was expected and {what} found")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f'{path} is not a checkpoint: its entry "{name}" is a {type(value).__name__}, not a tensor; '
                'expected {"model": state dict, ...} or a state dict'
            )


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error)
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"it asks for {forbidden[1]}, and loading that could run code; only tensors and plain values are read. "
            "Where you trust the file, save its state dict again with torch.save"
        )
    if path.suffix != ".pkl" and head.startswith(b"pk\x03\x04"):
        return "it is damaged or cut off; copy or download it again"
    return f"it is damaged or of another format ({type(error).__name__})"


def _read_model_zoo(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding="latin1").load()
    if isinstance(content, dict) and "model" in content:
        zoo = content
    else:  # Detectron (Caffe2): arrays by name, under "blobs" where there is more than a backbone
        blobs = content.get("blobs", content) if isinstance(content, dict) else content
        zoo = {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    if isinstance(zoo["model"], dict):
        zoo["model"] = {
            name: value.tensor() if isinstance(value, _Array) else value
            for name, value in zoo["model"].items()
            if not str(name).endswith("_momentum")
        }
    return zoo


class _Dtype:
    """Stands for `numpy.dtype` in a pickle: numbers and booleans only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[<>|=]?[fiub][1248]", code):
            raise pickle.UnpicklingError(f"arrays of dtype {code!r} are not read")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Stands for `numpy.ndarray` in a pickle; NumPy's own unpickling trusts the state that it is given."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.zeros(0, np.float32)

    def __setstate__(self, state: tuple[Any, tuple[int, ...], _Dtype, bool, bytes | str]) -> None:
        _, shape, dtype, is_fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # str: written by Python 2
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if is_fortran else "C")

    def tensor(self) -> Tensor:
        native = self.value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(self.value, native, order="C"))


def _array_from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _bytes_from_str(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


class _ArrayUnpickler(pickle.Unpickler):
    """Makes plain values and arrays; every other global of the pickle is refused before it is looked up."""

    _globals: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _bytes_from_str,
        "__builtin__.bytes": bytes,  # of an empty array
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
