"""Weights are read from every format that is promised, and nothing in a file is ever run."""

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint, write_checkpoint

WEIGHTS = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.steps": torch.tensor(3)}


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def same(weights: dict, expected: dict) -> bool:
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_what_torch_and_safetensors_saved(tmp_path):
    torch.save({"model": WEIGHTS, "iteration": 7, "optimizer": {"state": {}}}, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth")["iteration"] == 7
    torch.save(collections.OrderedDict(WEIGHTS), tmp_path / "bare.pth")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for file in tmp_path.iterdir():
        assert same(read_checkpoint(str(file))["model"], WEIGHTS)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_harmless(tmp_path_factory, place, bit):
    path = tmp_path_factory.getbasetemp() / "flipped.pth"
    write_checkpoint(path, {"model": WEIGHTS, "iteration": 7, "config": "SEED: 1"})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = read_checkpoint(path)
    except UserError:
        return
    assert same(read["model"], WEIGHTS) and (read["iteration"], read["config"]) == (7, "SEED: 1")


def test_a_flipped_bit_of_a_weight_is_an_error(tmp_path):
    torch.save({"model": {"x": torch.zeros(1000)}}, tmp_path / "model.pth")
    content = (tmp_path / "model.pth").read_bytes()
    where = content.index(bytes(4000)) + 2000
    (tmp_path / "model.pth").write_bytes(content[:where] + b"\x01" + content[where + 1 :])
    with pytest.raises(UserError, match=r"model\.pth"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_others_may_read_what_is_written(suffix, tmp_path):
    write_checkpoint(tmp_path / f"model{suffix}", {"model": WEIGHTS})
    (tmp_path / "any").touch()
    assert (tmp_path / f"model{suffix}").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(6, dtype=">f4"),
        np.arange(6)[::2],
        np.array(True),
        np.zeros((0, 3), np.float16),
    ],
    ids=["float64", "columns", "big-endian", "strided", "bool", "empty"],
)
def test_arrays_of_a_model_zoo(tmp_path, array, protocol):
    content = {"model": {"stem.weight": array}, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(tmp_path / "R-50.pkl")
    weight = checkpoint["model"]["stem.weight"].numpy()
    assert weight.dtype == array.dtype.newbyteorder("=") and np.array_equal(weight, array)
    assert checkpoint["matching_heuristics"] and checkpoint["__author__"] == "torchvision"


def test_arrays_that_python_2_pickled(tmp_path):
    """There, an array's bytes are a str."""
    array = np.arange(200, 206, dtype=np.uint8)
    reduced = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x06\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06"
    )
    content = b"\x80\x02}U\x04conv" + reduced[2:] + array.tobytes() + b"tbs."
    assert np.array_equal(pickle.loads(content, encoding="latin1")["conv"], array)  # the bytes above are right
    (tmp_path / "R-50.pkl").write_bytes(content)
    assert np.array_equal(read_checkpoint(tmp_path / "R-50.pkl")["model"]["conv"], array)


def test_arrays_of_numpy_1_and_2(tmp_path):
    content = pickle.dumps({"model": {"w": np.ones(3)}, "__author__": "me"}, 2)  # protocol 2: globals as plain text
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        (tmp_path / "model.pkl").write_bytes(content.replace(np.ones(0).__reduce__()[0].__module__.encode(), module))
        assert read_checkpoint(tmp_path / "model.pkl")["model"]["w"].tolist() == [1, 1, 1]


def test_blobs_of_detectron(tmp_path):
    blobs = {"conv1_w": np.ones(2), "conv1_w_momentum": np.ones(2)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    checkpoint = read_checkpoint(tmp_path / "model.pkl")
    assert list(checkpoint["model"]) == ["conv1_w"] and checkpoint["__author__"] == "Caffe2"


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize(
    "save", [lambda content, path: path.write_bytes(pickle.dumps(content, 2)), torch.save], ids=["pickle", "torch"]
)
def test_code_in_a_file_is_not_run(tmp_path, suffix, save):
    mark = tmp_path / "was-run"
    path = tmp_path / f"model{suffix}"
    save({"model": {"stem.weight": Trap(mark)}}, path)
    with pytest.raises(UserError, match=path.name):
        read_checkpoint(path)
    assert not mark.exists()


def test_object_arrays_are_refused(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"w": np.array([{}], dtype=object)}}))
    with pytest.raises(UserError, match=r"model\.pkl"):
        read_checkpoint(tmp_path / "model.pkl")


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n<!DOCTYPE html><html><body>404</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
        b"epoch,loss\n1,0.5\n",
        pickle.dumps(3, 2),
    ],
    ids=["empty", "page", "pointer", "text", "number"],
)
def test_what_is_not_a_checkpoint(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as caught:
        read_checkpoint(path)
    assert ("git lfs pull" in str(caught.value)) == content.startswith(b"version https://git-lfs")


@pytest.mark.parametrize(
    "content",
    [{"model": {"w": 3.0}}, {"model": [1]}, {"epoch": {"w": torch.zeros(1)}}, {}, [torch.zeros(1)]],
    ids=["number", "list", "nested", "nothing", "no dict"],
)
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "missing.pkl", "."])
def test_places_without_a_file(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path / name)):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error(tmp_path_factory, suffix, kept):
    path = tmp_path_factory.getbasetemp() / f"cut{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"w": np.ones((3, 3))}, "__author__": "me"}))
    else:
        write_checkpoint(path, {"model": WEIGHTS})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=path.name):
        read_checkpoint(path)
